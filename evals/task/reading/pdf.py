"""A PDF -> its text. To be called in a process apart (`evals/task/reading/apart.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.task.reading.text_file import FileError

MAX_PAGES = 5000
# Characters of all pages.
MAX_TEXT = 64 * 1024**2


def pdf_text(path: Path) -> str:
    """The text of all pages, an empty line between two.

    Raises FileError for what is encrypted, scanned or too large, and whatever pypdf raises for a broken file (pypdf itself
    unpacks no stream beyond 75 MB).
    """
    import logging

    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    reader = pypdf.PdfReader(path)
    if reader.is_encrypted and not _opens(reader):
        raise FileError("the PDF is encrypted: save a copy without a password")
    count = len(reader.pages)
    if count > MAX_PAGES:
        raise FileError(f"{count:,} pages (at most {MAX_PAGES:,}): split the PDF")
    texts: list[str] = []
    held = 0
    for page in reader.pages:
        texts.append(page.extract_text().strip())
        held += len(texts[-1])
        if held > MAX_TEXT:
            raise FileError(f"more than {MAX_TEXT // 1024**2} million characters of text")
    # NUL is what fonts without a table of signs are read as; it is no text.
    whole = "\n\n".join(text for text in texts if text).replace("\0", "")
    if not whole.strip():
        raise FileError("the PDF has no text in it (scanned pages?): run a text recognition over it first")
    return whole.encode("utf-8", "replace").decode("utf-8")


def _opens(reader: Any) -> bool:
    """Whether the empty password opens it, as of a PDF that only forbids printing."""
    try:
        return bool(reader.decrypt(""))
    except Exception:  # the cipher's library is missing, or the keys are broken
        return False
