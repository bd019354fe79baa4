"""Does an adapter fit? Its card names the base that it was trained on and the hashes of its files: both are held to what is here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.errors import AdvisorError
from evals.records import file_hash, read_json

CARD = "card.json"
# What is written about the weights, beside them: no part of what they answer.
ABOUT = (CARD, "README.md", "parity.json")
AGAIN = "copy it whole from where it was made, or train it again."


def check_adapter(folder: Path, fingerprint: str) -> None:
    """Raises AdvisorError where the card names another base than `fingerprint`, or where a file is not the one that it names.

    A folder without a card (peft's own, a checkpoint) has nothing to be held to.
    """
    if not (folder / CARD).is_file():
        return
    card = read_json(folder / CARD)
    base = card.get("base")
    base = base if isinstance(base, dict) else {}
    check_base(folder, str(base.get("name", "one without a name")), str(base.get("fingerprint", "")), fingerprint)
    check_files(folder, card)


def check_base(folder: Path, name: str, wanted: str, fingerprint: str) -> None:
    """Raises AdvisorError where an adapter of the base `name` (`wanted`, its hash) meets another one, whose hash is `fingerprint`.

    LoRA of another base of equal shape loads without a word, and answers nonsense.
    """
    if wanted != fingerprint:
        raise AdvisorError(
            f"this adapter is of another base: of {name} ({wanted[:12]}), and here it meets one with the hash {fingerprint[:12]}",
            where=str(folder),
            do="name the base that it was trained on; its weights, tokeniser and chat template count.",
        )


def check_files(folder: Path, card: Mapping[str, Any], *, deep: bool = True) -> None:
    """Raises AdvisorError where a file that the card names is missing or another; by size alone where not `deep`."""
    named = card.get("files")
    if not isinstance(named, dict) or not named or not all(isinstance(one, dict) for one in named.values()):
        raise AdvisorError("the card does not name the files of the weights", where=str(folder / CARD), do=AGAIN)
    for name, one in named.items():
        path = folder / name
        # A name is of a file in this folder; a card must not make us read elsewhere.
        if Path(name).name != name or not path.is_file():
            raise AdvisorError(f"the card names {name}, which is not here", where=str(folder), do=AGAIN)
        whole = path.stat().st_size == one.get("bytes") and (not deep or file_hash(path) == one.get("sha256"))
        if not whole:
            raise AdvisorError(
                f"{name} is not the file that its card names: it was changed or damaged", where=str(folder), do=AGAIN
            )
    weights = {one.name for one in folder.glob("*.safetensors")}
    if more := sorted(weights - named.keys()):
        raise AdvisorError(f"the card does not name {', '.join(more)}", where=str(folder), do=AGAIN)
