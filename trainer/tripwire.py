"""A tripwire against forgetting: how far what the model says to general questions has moved from what it said before training.

KL(before || now), the mean over the tokens of a few fixed replies, in nats a token (Kullback and Leibler 1951). It moves as soon as the
general behaviour does, long before a benchmark could be run, and costs one small forward pass. The questions are not those of replay
(`replay_prompts.txt`), so that it does not only see what is held in place by being trained on; a test holds them apart from these and
from the general benchmarks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engines.attention import Packed
from evals.engines.decode import read_prefix, shared_by_all
from evals.engines.handle import ModelHandle
from evals.engines.scoring import kl
from evals.events import Note
from trainer.data import IGNORED, encode_replay
from trainer.replay import Replay

TEXTS = Path(__file__).resolve().parent / "watched_replies.txt"
NAME = "before.safetensors"
# Of each distribution so many of its likeliest tokens are kept apart and all others counted as one: what is measured is then a lower
# bound (the data-processing inequality), in practice by less than a hundredth, and a thousandth of the memory.
KEPT = 256
# Fewer tokens that all begin with are not worth a pass of their own.
MIN_SHARED = 16
ROWS = 16
# Nats a token beyond which it warns: docs/training.md has the measurements.
LIMIT = 0.5


def watched_replies() -> tuple[Replay, ...]:
    """The questions and their fixed replies: a line each, a tab between."""
    lines = TEXTS.read_text(encoding="utf-8").splitlines()
    pairs = [line.replace("\\n", "\n").split("\t") for line in lines]
    return tuple(Replay(prompt, reply, True) for prompt, reply in pairs)


@dataclass(frozen=True)
class Texts:
    """Token ids, padded on the right, the places (row, column) from which a reply's token is predicted, and how many tokens all rows
    begin with (a template's own system turn)."""

    ids: list[list[int]]
    places: list[tuple[int, int]]
    shared: int

    @property
    def tokens(self) -> int:
        """How many are read, those that all begin with once."""
        return sum(map(len, self.ids)) - self.shared * (len(self.ids) - 1)


def encoded(tokenizer: Any, replies: Sequence[Replay]) -> Texts:
    rows = encode_replay(tokenizer, replies, 10_000)
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [tokenizer.pad_token_id] * (width - len(row["input_ids"])) for row in rows]
    # The logits of a place are of the token behind it.
    places = [(at, here - 1) for at, row in enumerate(rows) for here, label in enumerate(row["labels"]) if label != IGNORED]
    shared = min(shared_by_all(ids), *(column for _, column in places))
    return Texts(ids, places, shared if shared >= MIN_SHARED else 0)


class Tripwire:
    """Measures KL(before || now) of `handle`'s model, in which `before` is as it was when `remember` was called.

    What is remembered lies in `folder`, so that a training that goes on later measures against the same.
    """

    def __init__(self, handle: ModelHandle, folder: Path) -> None:
        self.handle = handle
        self.path = folder / NAME
        self.texts = encoded(handle.tokenizer, watched_replies())
        self._before: dict[str, Any] = {}

    def remember(self) -> None:
        """Keep what the model says now: its likeliest tokens (places, KEPT) at every place, and their log-probabilities."""
        from safetensors.torch import save_file

        logits = self._logits()
        top = logits.topk(min(KEPT, logits.shape[-1]), -1).indices
        self._before = {"tokens": top, "log_probs": _log_probs(logits, top)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        save_file({name: one.cpu().contiguous() for name, one in self._before.items()}, new)
        os.replace(new, self.path)

    def recall(self) -> bool:
        """Go on measuring against what an earlier part of this training has remembered; false where that is gone."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            kept = load_file(self.path, device=self.handle.device)
        except (OSError, SafetensorError):
            return False
        if {*kept} != {"tokens", "log_probs"} or len(kept["tokens"]) != len(self.texts.places):
            return False
        self._before = kept
        return True

    def measure(self) -> float:
        """KL(before || now) in nats a token."""
        import torch

        with torch.inference_mode():
            p = self._before["log_probs"].double()
            q = _log_probs(self._logits(), self._before["tokens"].long()).double()
            return max(0.0, float(kl(_with_the_rest(p), _with_the_rest(q)).mean()))

    def _logits(self) -> Any:
        """(places, vocabulary), in the model's own dtype."""
        import torch

        texts, handle, this = self.texts, self.handle, None
        skip = texts.shared if handle.shares else 0
        if skip:
            prefix = read_prefix(handle.forward, texts.ids[0][:skip], None, handle.device)
            width = len(texts.ids[0])
            this = Packed(torch.arange(skip, width, device=handle.device).expand(len(texts.ids), width - skip), prefix)
        return handle.forward([one[skip:] for one in texts.ids], this, [(row, column - skip) for row, column in texts.places])


def _with_the_rest(log_probs: Any) -> Any:
    """(places, some) -> (places, some + 1): last, the log-probability of all other tokens as one."""
    import torch

    rest = -torch.expm1(log_probs.logsumexp(-1, keepdim=True).clamp(max=-1e-12))
    return torch.cat([log_probs, rest.log()], -1)


def _log_probs(logits: Any, tokens: Any) -> Any:
    """Natural log-probabilities, fp32, of these tokens (places, some)."""
    import torch

    with torch.inference_mode():
        # A few rows at a time: in fp32 all of them would be the largest tensor of the training.
        totals = torch.cat([part.float().logsumexp(-1, keepdim=True) for part in logits.split(ROWS)])
        return logits.gather(-1, tokens).float() - totals


def warning(purpose: str, step: int, kl: float, limit: float = LIMIT) -> Note:
    """What is said when the limit is passed, once a training."""
    return Note(
        f"{purpose}: at step {step} the model answers general questions otherwise than before training: KL {kl:.2f} nats a token "
        f"(limit {limit:g}). Forgetting may follow. More replay (`replay_share`), a lower `learning_rate` or fewer passes hold it back.",
        "warning",
    )


def limit_passed(before: Sequence[float], kl: float, limit: float = LIMIT) -> bool:
    """Whether this measurement is the first of a training beyond the limit."""
    return (kl > limit or math.isnan(kl)) and all(one <= limit for one in before)
