"""Documents as token ids with labels, for continued pretraining: every token of every document is learnt once a pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from evals.errors import AdvisorError
from evals.task.example import Example
from trainer.data import IGNORED, Encoded


def encode_documents(tokenizer: Any, documents: Sequence[Example], max_length: int) -> Encoded:
    """The texts, which are the targets, in blocks of at most `max_length` tokens; one document a block, so that none sees another.

    Behind a document's last token stands the end-of-text token, and it is learnt. Before its first one stands what the tokeniser puts
    before a text, or else the end-of-text token, as where a text follows another in pretraining; it is read only. A document that is
    too long is cut into pieces of about the same length, each of which begins with the last token of the one before, read only: so
    nothing is learnt twice, and no token is left without one to predict it from.

    The rows' ids say from which document (and which piece of it) each comes; documents without any text are counted as dropped.

    Raises AdvisorError where no document has any text, or the tokeniser has no end-of-text token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise AdvisorError(
            "the tokeniser has no end-of-text token, so that documents cannot be told apart", where="continued pretraining"
        )
    start = _start(tokenizer, end)
    rows: list[dict[str, list[int]]] = []
    ids: list[str] = []
    empty = 0
    for document in documents:
        # A mark that stands in a document is text, and ends no turn.
        text: list[int] = tokenizer(document.target, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
        pieces = _pieces([start, *text, end], max_length) if document.target.strip() else []
        empty += not pieces
        rows += [{"input_ids": piece, "labels": [IGNORED, *piece[1:]]} for piece in pieces]
        ids += [document.id if len(pieces) == 1 else f"{document.id} ({at}/{len(pieces)})" for at in range(1, len(pieces) + 1)]
    if not rows:
        raise AdvisorError(
            "the documents hold no text to learn",
            where="continued pretraining",
            do="look at `data: {documents: …}` in the task file.",
        )
    return Encoded(tuple(rows), empty, ids=tuple(ids))


def _start(tokenizer: Any, end: int) -> int:
    """What a document's first token is predicted from."""
    bare: list[int] = tokenizer("", verbose=False)["input_ids"]
    return bare[0] if bare and bare[0] == tokenizer.bos_token_id else end


def _pieces(ids: list[int], most: int) -> list[list[int]]:
    """Cut into pieces of at most `most` tokens that share one token with the next: the fewest, of about the same length."""
    learnt = len(ids) - 1
    count = -(-learnt // (most - 1))
    borders = [learnt * at // count for at in range(count + 1)]
    return [ids[low : high + 1] for low, high in pairwise(borders)]
