"""Cross-encoders for the benchmark of retrieval, trained here: the machines that run it can fetch none.

Two models, each of the questions on half of the documents, so that a question is reordered only by the model that has seen no
question on its document and no passage of it. That model has seen the other half's passages, as anyone's has who tunes a reranker
on what there is; it is smaller and has learnt from far less than published ones (690 questions against MS MARCO's 500,000), so that
what is measured is the machinery and a lower bound of what reranking brings.

Candidates come and go as plain data: this file knows neither index nor retriever.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from evals.engines.machine import bf16_units

if TYPE_CHECKING:
    import torch

FOLDS = 2
NEGATIVES = 4
PASSES = 1
# The rehearsal: groups, wrong stretches in each, words of a stretch, words asked for.
REHEARSED, REHEARSED_WRONG, STRETCH, ASKED_WORDS = 500, 3, 36, 8
# Questions of one step, each with its passages.
TOGETHER = 4
RATE, HEAD_RATE = 1e-4, 1e-3
WARM = 0.1
# Tokens of a question and a passage together; the rest of a longer passage is not read.
LONGEST = 256
SCORED_TOGETHER = 64


@dataclass(frozen=True)
class Candidate:
    """A passage that a retriever found. `doubtful`: no gold passage, but it may answer (it holds the answer's words, say), so that
    it must not be taught as wrong."""

    document: str
    text: str
    relevant: bool
    doubtful: bool = False


@dataclass(frozen=True)
class Asked:
    """A question on `document`. `gold`: passages that answer it, found or not. `candidates`: what is reordered, best first.
    `hard`: wrong passages to learn from (the first 30 of each retriever, say); those of the other fold are left out."""

    question: str
    document: str
    gold: Sequence[str]
    candidates: Sequence[Candidate]
    hard: Sequence[Candidate]


@dataclass(frozen=True)
class Group:
    """What one step of training compares: one passage that answers, and some that do not."""

    question: str
    right: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Reordered:
    """`recall[k]`: (before, after) reordering, the share of questions with a relevant passage among the first k. `orders[q]`:
    positions in question q's candidates, best first; `scores[q]` as the candidates stand. `train_s`: both models; `ms`: median of
    one question, all its candidates. `groups`: questions that each model has learnt from."""

    recall: dict[int, tuple[float, float]]
    orders: list[list[int]]
    scores: list[list[float]]
    train_s: float
    ms: float
    groups: tuple[int, ...]


def folds(documents: Sequence[str]) -> dict[str, int]:
    """Each document's fold, from one document per question: whole documents, the largest first to the fold with fewest questions."""
    sizes = [0] * FOLDS
    found = {}
    for document, questions in sorted(Counter(documents).items(), key=lambda one: (-one[1], one[0])):
        found[document] = sizes.index(min(sizes))
        sizes[found[document]] += questions
    return found


def groups(asked: Sequence[Asked], allowed: set[str], seed: int) -> list[Group]:
    """One group for each question on an allowed document that has a gold passage and a wrong one to learn from."""
    draw = random.Random(seed)
    made = []
    for one in asked:
        if one.document not in allowed or not one.gold:
            continue
        gold = set(one.gold)
        wrong = [
            other.text
            for other in one.hard
            if other.document in allowed and not other.relevant and not other.doubtful and other.text not in gold
        ]
        wrong = list(dict.fromkeys(wrong))
        if wrong:
            made.append(Group(one.question, draw.choice(list(one.gold)), tuple(draw.sample(wrong, min(NEGATIVES, len(wrong))))))
    return made


def rehearsal(asked: Sequence[Asked], allowed: set[str], count: int, seed: int) -> list[Group]:
    """Groups made of passages alone (an inverse cloze task; Lee, Chang and Toutanova 2019): half the words of a stretch of a
    passage ask for the stretch around them among others of the same document.

    An encoder that was trained to read texts apart must first learn to look from one to the other; that needs many steps, and
    short texts make them cheap.
    """
    draw = random.Random(seed)
    texts: dict[str, list[list[str]]] = {}
    for one in asked:
        for other in (*one.candidates, *one.hard):
            if other.document in allowed:
                texts.setdefault(other.document, []).append(other.text.split())
    pools = [sorted({" ".join(words) for words in some}) for _, some in sorted(texts.items())]
    pools = [pool for pool in pools if len(pool) > REHEARSED_WRONG]
    return [_cloze([text.split() for text in draw.sample(draw.choice(pools), 1 + REHEARSED_WRONG)], draw) for _ in range(count)]


def _cloze(texts: Sequence[list[str]], draw: random.Random) -> Group:
    stretches = []
    for words in texts:
        start = draw.randint(0, max(0, len(words) - STRETCH))
        stretches.append(words[start : start + STRETCH])
    right = stretches[0]
    start = draw.randint(0, max(0, len(right) - 2 * ASKED_WORDS))
    asked = [word for word in right[start : start + 2 * ASKED_WORDS] if draw.random() < 0.5]
    return Group(" ".join(asked or right[:1]), " ".join(right), tuple(" ".join(words) for words in stretches[1:]))


def trained(base: Path, passes: Sequence[Sequence[Group]], folder: Path, seed: int = 0) -> Path:
    """Train a cross-encoder from an encoder's weights and save it as sentence-transformers' `CrossEncoder` loads it.

    `passes[i]` are the groups of pass i (drawn anew, so that a question meets other wrong passages). The loss is the cross-entropy
    of the right passage among its group (localised contrastive estimation; Gao, Dai and Callan 2021), under AdamW with a linear
    warm-up and decay. The head is new and learns faster than what stands under it; word vectors stay.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, model_max_length=LONGEST)
        # Dropout draws its numbers on one core: without it the same step takes a third of the time.
        still = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, local_files_only=True, dtype=torch.float32, **still
        )
        model.get_input_embeddings().requires_grad_(False)
        steps = [batch for some in passes for batch in _batches(some, random.Random(seed))]
        optimiser = torch.optim.AdamW(_rates(model), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _slope(step, len(steps)))
        model.train()
        for batch in steps:
            loss = _loss(model, tokenizer, batch)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _rates(model: Any) -> list[dict[str, Any]]:
    head = [one for name, one in model.named_parameters() if name.startswith("classifier.")]
    rest = [one for name, one in model.named_parameters() if not name.startswith("classifier.") and one.requires_grad]
    return [{"params": head, "lr": HEAD_RATE}, {"params": rest, "lr": RATE}]


def _slope(step: int, steps: int) -> float:
    warm = max(1, round(WARM * steps))
    return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))


def _batches(some: Sequence[Group], draw: random.Random) -> Iterator[list[Group]]:
    mixed = draw.sample(list(some), len(some))
    for start in range(0, len(mixed), TOGETHER):
        yield mixed[start : start + TOGETHER]


def _loss(model: Any, tokenizer: Any, batch: Sequence[Group]) -> torch.Tensor:
    """Mean of -log p(right | its group); the right passage stands first in each."""
    import torch

    pairs = [(group.question, passage) for group in batch for passage in (group.right, *group.wrong)]
    logits = _logits(model, tokenizer, pairs)
    parts = torch.split(logits, [1 + len(group.wrong) for group in batch])
    return torch.stack([torch.logsumexp(part, 0) - part[0] for part in parts]).mean()


def _logits(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """(n,) in float32."""
    import torch

    questions, passages = zip(*pairs, strict=True)
    read = tokenizer(
        list(questions), list(passages), padding=True, truncation="only_second", max_length=LONGEST, return_tensors="pt"
    )
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16_units() else nullcontext():
        return model(**read).logits.float().squeeze(-1)


def scored(folder: Path, asked: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[list[float]], list[float]]:
    """Scores of each question's passages, and the seconds that each question took."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    scores, seconds = [], []
    with torch.inference_mode():
        for question, passages in asked:
            started = time.perf_counter()
            pairs = [(question, passage) for passage in passages]
            parts = [pairs[start : start + SCORED_TOGETHER] for start in range(0, len(pairs), SCORED_TOGETHER)]
            scores.append([float(score) for part in parts for score in _logits(model, tokenizer, part)])
            seconds.append(time.perf_counter() - started)
    return scores, seconds


def trained_folds(base: Path, asked: Sequence[Asked], home: Path, seed: int = 0) -> tuple[list[Path], list[int]]:
    """One model a fold below `home`, and the questions it has learnt from: model i knows no document of fold i and reorders those."""
    fold = folds([one.document for one in asked])
    models, sizes = [], []
    for held_out in range(FOLDS):
        allowed = {document for document, number in fold.items() if number != held_out}
        passes = [groups(asked, allowed, seed + turn) for turn in range(PASSES)]
        rehearsed = rehearsal(asked, allowed, REHEARSED, seed)
        models.append(trained(base, [rehearsed, *passes], home / f"without_{held_out}", seed))
        sizes.append(len(passes[0]))
    return models, sizes


def reordered(base: Path, asked: Sequence[Asked], home: Path, seed: int = 0, depths: Sequence[int] = (1, 5, 20)) -> Reordered:
    """Train both models from `base` below `home` and let each reorder the candidates of the questions that it knows nothing of."""
    started = time.perf_counter()
    models, sizes = trained_folds(base, asked, home, seed)
    train_s = time.perf_counter() - started
    fold = folds([one.document for one in asked])
    scores: list[list[float]] = [[] for _ in asked]
    seconds: list[float] = []
    for number, model in enumerate(models):
        mine = [at for at, one in enumerate(asked) if fold[one.document] == number]
        found, took = scored(model, [(asked[at].question, [one.text for one in asked[at].candidates]) for at in mine])
        seconds += took
        for at, some in zip(mine, found, strict=True):
            scores[at] = some
    orders = [_order(some) for some in scores]
    recall = {
        depth: (_recall(asked, [range(len(one)) for one in orders], depth), _recall(asked, orders, depth)) for depth in depths
    }
    return Reordered(recall, orders, scores, train_s, 1000 * median(seconds), tuple(sizes))


def _order(scores: Sequence[float]) -> list[int]:
    """Positions, best first; equals as they stood."""
    return sorted(range(len(scores)), key=lambda at: (-scores[at], at))


def _recall(asked: Sequence[Asked], orders: Sequence[Sequence[int]], depth: int) -> float:
    """The share of all questions with a relevant candidate among the first; one that was not found counts as missed."""
    return fmean(any(one.candidates[at].relevant for at in order[:depth]) for one, order in zip(asked, orders, strict=True))
