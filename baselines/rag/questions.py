"""What a retriever tells of questions before it embeds them."""

from __future__ import annotations

from collections.abc import Sequence

from evals.engines.embed import Embedder
from evals.events import Note, OnEvent


def say_cut(questions: Sequence[str], embedder: Embedder, on_event: OnEvent) -> None:
    """A question longer than the model's window is searched for by its beginning; that is said, once a call."""
    # A token is a byte at least, so that most questions need not be cut into tokens.
    long = [one for one in questions if len(one.encode("utf-8", "replace")) > embedder.window // 2]
    read = embedder.piece_ids(long)
    cut = sum(len(some) < len(embedder.token_spans(one)) for some, one in zip(read, long, strict=True))
    if cut:
        what = "is" if cut == 1 else "are"
        text = f"{cut} of {len(questions)} questions {what} longer than the {embedder.window} tokens that {embedder.name} reads"
        on_event(Note(f"{text}: passages are searched for by the beginning.", level="warning"))
