"""How far a tuned model has moved from its base where it answers nothing: perplexity and KL(base || tuned), on general text and on prompts.

No item is right or wrong here, so that a few seconds of reading see what a benchmark needs hundreds of items for: the KL rises before
scores fall. It does not say that anything was lost. A model that has learnt a new style moves too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.engines.decode import shared_by_all
from evals.engines.engine import Message
from evals.engines.hf import HfEngine
from evals.engines.scoring import Compared
from evals.errors import AdvisorError
from evals.statistics.paired import mean_interval

TEXTS = Path(__file__).resolve().parent / "texts.txt"
# Of prompts so many are read at most, and so many of their tokens: both models read them in a few seconds.
MAX_PROMPTS = 64
MAX_PROMPT_TOKENS = 6000


@dataclass(frozen=True)
class Divergence:
    """Of `tokens` tokens in `texts` texts: both perplexities, exp of the mean negative log-probability of a token (natural).

    `ratio` is the tuned perplexity over the base's, `kl` the mean over the tokens of KL(base || tuned) in nats (Kullback and Leibler
    1951). Their 95% intervals take a text for a cluster of its tokens, and no text for one more.
    """

    name: str
    texts: int
    tokens: int
    base: float
    tuned: float
    ratio: float
    ratio_low: float
    ratio_high: float
    kl: float
    kl_low: float
    kl_high: float


def general_texts() -> tuple[str, ...]:
    """Short paragraphs of plain English, written for this: a line each."""
    return tuple(TEXTS.read_text(encoding="utf-8").splitlines())


def general_divergence(base: HfEngine, tuned: HfEngine) -> Divergence:
    """On the general texts, each with the mark that the model's own texts begin with, where it has one (Gemma is lost without it)."""
    ids = base.handle.tokenizer(list(general_texts()), verbose=False)["input_ids"]
    return divergence("general text", base, tuned, ids)


def prompt_divergence(base: HfEngine, tuned: HfEngine, prompts: Sequence[Sequence[Message]]) -> Divergence | None:
    """On the first of the `prompts`, each as the chat that the model is asked, without what all of them begin with (an instruction).

    None where there are none, or where they are one and the same.
    """
    ids: list[list[int]] = []
    for prompt in prompts[:MAX_PROMPTS]:
        one = base.prompt_ids(prompt)[: base.context_length]
        if ids and sum(map(len, ids)) + len(one) > MAX_PROMPT_TOKENS:
            break
        ids.append(one)
    if not ids:
        return None
    shared = shared_by_all(ids) if len(ids) > 1 else 0
    if len({tuple(one) for one in ids}) == 1 < len(ids):
        return None
    return divergence("the task's prompts", base, tuned, ids, shared)


def divergence(name: str, base: HfEngine, tuned: HfEngine, texts: Sequence[Sequence[int]], shared: int = 0) -> Divergence:
    """Two models on token sequences (two tokens at least) of which the first `shared` tokens are given, not counted.

    Raises AdvisorError where a model gives no numbers.
    """
    found = base.compared(tuned, texts, shared)
    kl, before, now = (_flat(found, part) for part in ("kl", "base", "tuned"))
    _refuse_what_is_no_number(tuned, (*kl, *before, *now))
    groups = [at for at, one in enumerate(found) for _ in one.kl]
    ratio, ratio_low, ratio_high = map(math.exp, _interval([b - a for a, b in zip(before, now, strict=True)], groups))
    mean, low, high = _interval([max(0.0, one) for one in kl], groups)
    perplexity, perplexity_now = (math.exp(math.fsum(each) / len(each)) for each in (before, now))
    return Divergence(
        name, len(found), len(kl), perplexity, perplexity_now, ratio, ratio_low, ratio_high, kl=mean, kl_low=low, kl_high=high
    )


def asked_divergence(base: HfEngine, tuned: HfEngine, prompts: Sequence[str]) -> float:
    """KL(base || tuned) in nats a token, on each prompt put as a chat: from where the chats begin to differ to where the answer begins.

    How a model begins to answer moves before it reads otherwise. Nothing is generated.
    """
    # What stands behind the prompt is not read: only its place is predicted.
    end = base.handle.tokenizer.eos_token_id or 0
    ids = [[*base.prompt_ids((Message("user", one),))[: base.context_length - 1], end] for one in prompts]
    kl = _flat(base.compared(tuned, ids, shared_by_all(ids) if len(ids) > 1 else 0), "kl")
    _refuse_what_is_no_number(tuned, kl)
    return math.fsum(kl) / len(kl)


def _refuse_what_is_no_number(tuned: HfEngine, values: Sequence[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise AdvisorError(
            "the model's probabilities are not numbers",
            where=tuned.name,
            do="look at the training: weights that hold NaN or infinity answer nothing.",
        )


def _flat(found: Sequence[Compared], part: str) -> list[float]:
    return [value for one in found for value in getattr(one, part)]


def _interval(values: Sequence[float], groups: Sequence[int]) -> tuple[float, float, float]:
    """The mean of the tokens' values, and its interval by clusters; `mean_interval` is for values in [-1, 1]."""
    scale = max((abs(one) for one in values), default=0.0) or 1e-12
    found = mean_interval([one / scale for one in values], groups)
    return found.estimate * scale, found.low * scale, found.high * scale
