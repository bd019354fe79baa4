"""Arrow columns -> Python values, without letting a small file decode into gigabytes.

A Parquet column keeps equal texts once (its dictionary). Decoded naively, one text of a megabyte that a million rows point
to is a terabyte; here the rows share it, and the length of what they hold together is limited.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from evals.task.reading.raw import Fault, RawRow
from evals.task.reading.strict_json import MAX_DEPTH
from evals.task.reading.text_file import MAX_BYTES, MAX_LINE, FileError


class Budget:
    """Characters that all rows of a source may hold together."""

    def __init__(self, most: int = MAX_BYTES) -> None:
        self._most = most
        self._held = 0

    def take(self, count: int) -> None:
        self._held += count
        if self._held > self._most:
            raise FileError(f"decodes to more than {self._most // 1024**2} MB of text")


def readable(kind: Any) -> bool:
    """Whether a column of this Arrow type becomes JSON values. Bytes (pictures), maps and unions do not, and are not read."""
    from pyarrow import types

    if types.is_struct(kind):
        return kind.num_fields > 0 and all(readable(kind.field(at).type) for at in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind):
        return readable(kind.value_type)
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    plain = (types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal)
    return _is_text(kind) or types.is_temporal(kind) or any(is_kind(kind) for is_kind in plain)


def batch_rows(batch: Any, first: int, budget: Budget) -> Iterator[RawRow | Fault]:
    """The rows of a record batch or table, numbered from `first`. Raises FileError where the budget is spent."""
    names = [name for name, column in zip(batch.column_names, batch.columns, strict=True) if readable(column.type)]
    columns = [_values(_one_array(batch.column(name)), budget, 0) for name in names]
    for number, row in enumerate(zip(*columns, strict=True) if columns else [()] * batch.num_rows, start=first):
        body = dict(zip(names, row, strict=True))
        # pandas writes a missing value as NaN.
        body = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in body.items()}
        bad = next((key for key, value in body.items() if not _is_json(value)), None)
        yield RawRow(number, body) if bad is None else Fault(number, "NaN and Infinity are no JSON numbers", bad)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _one_array(column: Any) -> Any:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _values(array: Any, budget: Budget, depth: int) -> list[Any]:
    """An array as Python values; equal texts of a dictionary are one object."""
    import pyarrow as pa
    from pyarrow import types

    if depth > MAX_DEPTH:
        raise FileError(f"values nested deeper than {MAX_DEPTH} levels")
    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in _values(chunk, budget, depth)]
    kind = array.type
    if types.is_dictionary(kind):
        return _shared_texts(array, budget)
    if types.is_struct(kind):
        names = [kind.field(at).name for at in range(kind.num_fields)]
        fields = [_values(one, budget, depth + 1) for one in array.flatten()]
        there = array.is_valid().to_pylist()
        return [
            dict(zip(names, row, strict=True)) if valid else None
            for row, valid in zip(zip(*fields, strict=True), there, strict=True)
        ]
    if types.is_list(kind) or types.is_large_list(kind):
        return _lists(array, budget, depth)
    if _is_text(kind):
        budget.take(array.get_total_buffer_size() and _bytes_of(array))
        return [_checked(text) for text in array.to_pylist()]
    return [_plain(value) for value in array.to_pylist()]


def _lists(array: Any, budget: Budget, depth: int) -> list[Any]:
    offsets = array.offsets.to_pylist()
    low = offsets[0]
    inner = _values(array.values.slice(low, offsets[-1] - low), budget, depth + 1)
    budget.take(8 * len(inner))
    there = array.is_valid().to_pylist()
    return [
        inner[start - low : end - low] if valid else None
        for start, end, valid in zip(offsets[:-1], offsets[1:], there, strict=True)
    ]


def _shared_texts(array: Any, budget: Budget) -> list[str | None]:
    """Only the entries that are used are decoded: each batch of a column brings the whole dictionary along."""
    used = array.indices.unique().drop_null()
    texts = dict(zip(used.to_pylist(), array.dictionary.take(used).to_pylist(), strict=True))
    values = [None if at is None else _checked(texts[at]) for at in array.indices.to_pylist()]
    budget.take(sum(len(value) for value in values if value is not None))
    return values


def _bytes_of(array: Any) -> int:
    from pyarrow import compute

    return int(compute.sum(compute.binary_length(array)).as_py() or 0)


def _checked(text: str | None) -> str | None:
    if text is not None and len(text) > MAX_LINE:
        raise FileError(f"a text of {len(text):,} characters (at most {MAX_LINE:,})")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) or not isinstance(value, bool | int | float | None) else value


def _is_json(value: Any) -> bool:
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return False
        if isinstance(one, dict):
            rest += one.values()
        elif isinstance(one, list):
            rest += one
    return True
