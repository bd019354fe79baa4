"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column stands left, the others right; a bar in a cell is no border."""
    rule = ["---" if index == 0 else "---:" for index in range(len(head))]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [head, rule, *rows])
