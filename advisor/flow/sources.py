"""What `advisor init DATA` starts from: a file, a folder of splits, or a dataset of the Hub; and where the task file goes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from evals.errors import AdvisorError, Problem, ProblemsError
from evals.task.reading.raw import RawRow
from evals.task.reading.read import DATA_SUFFIXES, HUB_NAME, HUB_SPLITS, open_source, raw_rows
from evals.task.spec import HubDataset

TASK_FILE = "task.yaml"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val", "eval"),
    "test": ("test", "testing", "heldout", "held_out"),
}
INSTRUCTION_NAMES = ("instruction.md", "instruction.txt")
# A file called so says nothing about the task: its folder does.
PLAIN_NAMES = {"data", "dataset", "examples", "rows", *(name for names in SPLIT_NAMES.values() for name in names)}


@dataclass(frozen=True)
class Sources:
    """Where the data lie, and in which folder the task file will. Paths are as they were given.

    `instruction` is the file of the instruction where the folder of the data has one. `beside` are other splits that lie
    beside a single file and are not taken. `title` and `name` are for people.
    """

    folder: Path
    title: str
    name: str
    splits: Mapping[str, Path | HubDataset]
    documents: Path | None = None
    instruction: Path | None = None
    beside: tuple[str, ...] = ()

    def source(self, split: str) -> str | HubDataset:
        """What the readers take, whether the task's folder is there yet or not."""
        one = self.splits[split]
        return str(one.absolute()) if isinstance(one, Path) else one

    def relative(self, path: Path) -> str:
        """A path as the task file names it."""
        # A link stays what it is called, but ".." leads out of where a folder really is.
        real = path.parent.resolve() / path.name if path.name else path.resolve()
        return Path(os.path.relpath(real, self.folder.resolve())).as_posix()


def find_sources(
    data: str, *, out: Path | None = None, dev: str | None = None, test: str | None = None, documents: str | None = None
) -> Sources:
    """A file, a folder of train, dev and test files, or a dataset of the Hub.

    Raises AdvisorError where there is nothing to start from, or where a task file stands already.
    """
    path = Path(data)
    try:
        for flag, one in (("--dev", dev), ("--test", test), ("--documents", documents)):
            if one is not None and not Path(one).exists():
                raise AdvisorError("there is no such file or folder", where=one, do=f"name one that is there with {flag}.")
        if path.is_dir():
            sources = _folder(path, out or path)
        elif path.exists():
            sources = _file(path, out or path.parent)
        elif HUB_NAME.fullmatch(data) and path.suffix.lower() not in DATA_SUFFIXES:
            sources = _dataset(data, out or Path(data.rpartition("/")[2]))
        else:
            raise AdvisorError("there is no such file or folder", where=data, do="name a data file, a folder, or org/name.")
        free(sources.folder / TASK_FILE)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AdvisorError(f"cannot be read: {reason}", where=data, do="name a file that can be read.") from error
    more = {name: Path(one) for name, one in (("dev", dev), ("test", test)) if one is not None}
    found = sources.documents if documents is None else Path(documents)
    return replace(sources, splits={**sources.splits, **more}, documents=found)


def free(file: Path) -> None:
    """Raises AdvisorError where there is a task file."""
    if file.exists():
        raise AdvisorError(
            "there is a task file already, and it is not overwritten",
            where=str(file),
            do="edit it, move it away, or write the new one elsewhere with --out FOLDER.",
        )


def _file(path: Path, out: Path) -> Sources:
    """One file alone. Those beside it whose names say that they are other splits of the same are only mentioned."""
    plain = path.stem.lower() in PLAIN_NAMES
    beside: tuple[str, ...] = ()
    if _stem(path) in SPLIT_NAMES["train"]:
        beside = tuple(one.name for split in ("dev", "test") for one in _files(path.parent, split))
    return Sources(out, path.name, path.resolve().parent.name if plain else path.stem, {"train": path}, beside=beside)


def _folder(path: Path, out: Path) -> Sources:
    """Files whose names say which split they are; beside them a folder of documents and a file of the instruction."""
    splits: dict[str, Path | HubDataset] = {}
    for split in SPLIT_NAMES:
        files = _files(path, split)
        if len(files) > 1:
            shown = ", ".join(one.name for one in files)
            raise AdvisorError(f"several files could be the {split} split: {shown}", where=str(path), do="name one file.")
        if files:
            splits[split] = files[0]
    if "train" not in splits:
        raise AdvisorError(
            "no file here is called train", where=str(path), do="name the data file itself, or call it train.jsonl (.csv, …)."
        )
    documents = next((path / name for name in ("documents", "docs") if (path / name).is_dir()), None)
    instruction = next((path / name for name in INSTRUCTION_NAMES if (path / name).is_file()), None)
    name = path.resolve().name
    return Sources(out, f"the folder {name}", name, splits, documents, instruction)


def _files(folder: Path, split: str) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES and _stem(one) in SPLIT_NAMES[split])


def _stem(path: Path) -> str:
    """`train` of `train.jsonl` and of `train-00000-of-00001.parquet`, as the Hub names files."""
    return re.sub(r"-0+-of-0+1$", "", path.stem.lower())


def _dataset(name: str, out: Path) -> Sources:
    """Its train split, and its validation and test where it has them. Raises ProblemsError where it cannot be had."""
    splits: dict[str, Path | HubDataset] = {}
    for split, theirs in HUB_SPLITS.items():
        source = HubDataset(dataset_name=name, split=theirs)
        rows, problems = first_rows(source, out, split, 1)
        if rows:
            splits[split] = source
        elif split == "train":
            raise ProblemsError(problems, do="check the name, the network and your access, or name a file.")
    return Sources(out, name, out.name, splits)


def first_rows(source: str | HubDataset, folder: Path, split: str, most: int) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The first rows as they stand there, and what could not be read among them."""
    found = list(islice(raw_rows(open_source(source, folder, split)), most))
    return [one.body for one in found if isinstance(one, RawRow)], [one for one in found if isinstance(one, Problem)]
