"""What comes from data, in a report: shown as it is, and never as markup."""

from __future__ import annotations

import re


def block(lines: list[str]) -> str:
    """A block of code, fenced by more backticks than stand in it."""
    text = "\n".join(lines)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def plain(text: str) -> str:
    """One line of printable characters: a terminal that shows the report must not obey what the data says."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in " ".join(text.split()))
