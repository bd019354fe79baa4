"""A page of HTML -> its text: paragraphs stay paragraphs, headings become Markdown's, and what nobody reads is dropped."""

from __future__ import annotations

import re
from typing import Any

from evals.task.reading.text_file import FileError

DROPPED = {"script", "style", "nav", "template", "noscript", "head", "svg", "iframe", "object", "form", "button", "select"}
BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset"),
    *("figcaption", "figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main", "ol"),
    *("p", "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"),
}
CELLS = {"td", "th"}
HEADING = re.compile(r"h[1-6]")
MAX_TAGS = 200_000


def html_text(page: str) -> str:
    """Text with an empty line between blocks and `# ` before headings; cells of a table's row stand on one line.

    Raises FileError for a page of more than MAX_TAGS tags: a parsed tag takes a kilobyte.
    """
    if page.count("<") > MAX_TAGS:
        raise FileError(f"more than {MAX_TAGS:,} tags: save the page as text")
    import warnings

    from bs4 import BeautifulSoup, XMLParsedAsHTMLWarning
    from bs4.exceptions import ParserRejectedMarkup

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
            soup = BeautifulSoup(page, "html.parser")
    except (ParserRejectedMarkup, AssertionError, RecursionError, ValueError) as error:
        raise FileError(f"this is no HTML that can be read: {str(error)[:200]}") from error
    pieces: list[str] = []
    _collect(soup, pieces)
    return _paragraphs("".join(pieces))


def _collect(soup: Any, pieces: list[str]) -> None:
    """The text of all nodes in their order, with marks where blocks begin and end. No recursion: a page may be deep."""
    from bs4.element import NavigableString, Tag

    # (node, inside of <pre>), or a mark to write once what stands inside of a tag is done.
    rest: list[tuple[Any, bool] | str] = [(soup, False)]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            pieces.append(item)
            continue
        node, kept = item
        if isinstance(node, Tag):
            if node.name in DROPPED or node.get("role") == "navigation":
                continue
            opening, closing = _marks(node.name)
            pieces.append(opening)
            rest.append(closing)
            kept = kept or node.name == "pre"
            rest += [(child, kept) for child in reversed(node.contents)]
        elif type(node) is NavigableString:
            text = str(node).replace(BREAK, "").replace(BLOCK, "")
            pieces.append(text.replace("\n", BREAK) if kept else re.sub(r"\s+", " ", text))


# Marks that no text holds (it was looked for NUL before, and they are taken out of it).
BREAK = "\x1e"
BLOCK = "\x1d"


def _marks(name: str) -> tuple[str, str]:
    """What to write before and behind a tag."""
    if name == "br":
        return BREAK, ""
    if name in CELLS:
        return "", " "
    if HEADING.fullmatch(name):
        return f"{BLOCK}{'#' * int(name[1])} ", BLOCK
    if name == "li":
        return f"{BREAK}- ", BREAK
    return (BREAK, BREAK) if name == "tr" else (BLOCK, BLOCK) if name in BLOCKS else ("", "")


def _paragraphs(marked: str) -> str:
    paragraphs = []
    for block in marked.split(BLOCK):
        lines = [line.strip() if "\t" not in line else line.rstrip() for line in block.split(BREAK)]
        text = "\n".join(line for line in lines if line.strip(" -#"))
        if text:
            paragraphs.append(text)
    return "\n\n".join(paragraphs)
