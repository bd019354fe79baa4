"""Datasets of the Hugging Face Hub, and local folders of them, as rows. No code of a dataset is ever run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.errors import did_you_mean
from evals.task.reading.columns import Budget, batch_rows
from evals.task.reading.raw import Fault, RawRow
from evals.task.reading.text_file import MAX_BYTES, MAX_LINES, FileError
from evals.task.spec import HubDataset

ROWS_AT_ONCE = 500
KNOCK_SECONDS = 10.0
UNREACHABLE = (
    "the Hub cannot be reached and the dataset is not in the Hugging Face cache: connect to the network, "
    "or name a local file or folder"
)


def dataset_rows(source: HubDataset, folder: Path) -> Iterator[RawRow | Fault]:
    """Rows, counted from 1. Raises FileError that says what to do: no such dataset, configuration or split; gated; no network."""
    from datasets import ClassLabel

    local = folder / source.dataset_name
    if local.is_dir():
        _check_folder(local)
        data = _loaded(source, str(local))
    else:
        with _quick_without_network(source.dataset_name):
            data = _loaded(source, source.dataset_name)
    if data.num_rows > MAX_LINES:
        raise FileError(f"{data.num_rows:,} rows (at most {MAX_LINES:,}): take a part, such as `split: train[:100000]`")
    budget = Budget()
    number = 1
    # A label is kept as its number there; the task is about its name.
    labels = {key: one.names for key, one in data.features.items() if isinstance(one, ClassLabel)}
    for table in data.with_format("arrow").iter(ROWS_AT_ONCE):
        for row in batch_rows(table, number, budget):
            yield replace(row, body=_named(row.body, labels)) if isinstance(row, RawRow) and labels else row
        number += table.num_rows


def _named(body: dict[str, Any], labels: dict[str, list[str]]) -> dict[str, Any]:
    """The row with the names of its labels; -1 is a label that nobody gave."""
    numbers = {key: body[key] for key in labels if isinstance(body.get(key), int)}
    return body | {key: labels[key][at] if 0 <= at < len(labels[key]) else None for key, at in numbers.items()}


def _loaded(source: HubDataset, name: str) -> Any:
    """The dataset's table, from the cache where it is. Raises FileError."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        builder = datasets.load_dataset_builder(name, source.dataset_config, revision=source.revision)
        _check_size(builder.info)
        return datasets.load_dataset(name, source.dataset_config, split=source.split, revision=source.revision)
    except FileError:
        raise
    except DatasetNotFoundError as error:
        raise FileError(_not_found(str(error))) from error
    except ConnectionError as error:
        raise FileError(UNREACHABLE) from error
    except Exception as error:  # whatever a strange file does to the libraries below, it is one broken dataset
        raise FileError(_reason(error, source)) from error


def _check_size(info: Any) -> None:
    """Where the dataset's card says how large it is, nothing too large is fetched."""
    size = info.download_size or 0
    if size > 16 * MAX_BYTES:
        raise FileError(f"the dataset is a download of {size // 1024**2:,} MB: name a smaller configuration, or a local file")


def _check_folder(folder: Path) -> None:
    """Parquet files of a local dataset are held to the limits of single ones: the library would decode them to disk."""
    import pyarrow as pa
    from pyarrow import parquet

    from evals.task.reading.parquet_file import check_parquet, probe

    for path in sorted(folder.rglob("*.parquet"))[:1000]:
        try:
            probe(path)
            with parquet.ParquetFile(path) as file:
                check_parquet(file)
        except FileError as error:
            raise FileError(f"{path.name}: {error.message}") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FileError(f"{path.name}: not a Parquet file that can be read") from error


def _not_found(message: str) -> str:
    if "gated" in message:
        return "the dataset is gated: accept its terms on its page on the Hub, then log in with `hf auth login`"
    return "the Hub has no such dataset or revision (or it is private: log in with `hf auth login`), and no such file is here"


def _reason(error: Exception, source: HubDataset) -> str:
    text = str(error) or type(error).__name__
    known = re.findall(r"'([^']+)'", text.split("Should be one of", maxsplit=1)[-1])
    if text.startswith("Unknown split"):
        return f"there is no split {source.split!r}{did_you_mean(source.split, known)}: it has {', '.join(known[:20])}"
    if "BuilderConfig" in text or "Config name is missing" in text:
        found = re.search(r"\[([^\]]*)\]", text)
        names = re.findall(r"'([^']+)'", found.group(1)) if found else []
        asked = source.dataset_config or ""
        said = f"there is no configuration {asked!r}{did_you_mean(asked, names)}" if asked else "it has several configurations"
        return f"{said}: set `dataset_config:` to one of {', '.join(names[:20])}"
    if "doesn't contain any data files" in text or "No (supported) data files" in text:
        return "no data files that can be read are here (JSON Lines, JSON, CSV, Parquet)"
    if "Dataset scripts are no longer supported" in text:
        return "the dataset is a script, and no code of a dataset is run: name its Parquet branch with `revision: refs/convert/parquet`"
    cause = error.__cause__ or error.__context__
    more = f" ({str(cause).splitlines()[0][:200]})" if cause is not None and str(cause) else ""
    return f"the dataset cannot be read: {text.splitlines()[0][:200]}{more}"


@contextmanager
def _quick_without_network(name: str) -> Iterator[None]:
    """One quick knock. Without an answer the libraries are offline meanwhile: they would try for half a minute, file by file."""
    import datasets.config
    from huggingface_hub import HfApi, constants

    was = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(name, timeout=KNOCK_SECONDS)
    except Exception as error:
        if getattr(error, "response", None) is None:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = was
