"""Log-likelihoods of given continuations: whole trees of them in one forward pass, each shared token read once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.engines.attention import Packed, Prefix
from evals.engines.decode import common

# Logits of one pass: places that are scored times vocabulary (elements; 4 bytes each where they become log-probabilities).
MAX_LOGITS = 1 << 26
ROWS = 16

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Choices:
    """Token ids: a context (one at least) and what may follow it (each one at least)."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Likelihood:
    """Summed log-probability (natural) of a continuation, its number of tokens, and whether greedy decoding writes it."""

    logprob: float
    tokens: int
    greedy: bool


@dataclass
class Tree:
    """Sequences laid out so that what they share stands once. Token i follows token `parents[i]` (-1: the context before).

    `segments` are (start, end, parent) in order: a segment is a run of tokens that stay together. `paths` are the places of
    each sequence's tokens.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)


def tree_of(sequences: Sequence[Sequence[int]]) -> Tree:
    """The trie of the sequences, depth first."""
    tree = Tree(paths=[[] for _ in sequences])
    # (sequences here, tokens of them that are laid out, place of the last one)
    todo: list[tuple[list[int], int, int]] = [(list(range(len(sequences))), 0, -1)]
    while todo:
        members, depth, parent = todo.pop()
        rest = [sequences[one][depth:] for one in members]
        length = common(min(rest, key=tuple), max(rest, key=tuple))
        start = len(tree.ids)
        if length:
            tree.ids += rest[0][:length]
            tree.parents += [parent, *range(start, start + length - 1)]
            tree.depths += range(depth, depth + length)
            tree.segments.append((start, start + length, parent))
            for one in members:
                tree.paths[one] += range(start, start + length)
            parent = start + length - 1
        branches: dict[int, list[int]] = {}
        for one, tokens in zip(members, rest, strict=True):
            if len(tokens) > length:
                branches.setdefault(tokens[length], []).append(one)
        todo += [(branch, depth + length, parent) for branch in reversed(branches.values())]
    return tree


def sees(tree: Tree, width: int) -> Any:
    """Boolean (width, width): which tokens each one may look at, those on its own path. Padding sees itself."""
    import torch

    seen = torch.eye(width, dtype=torch.bool)
    for start, end, parent in tree.segments:
        if parent >= 0:
            seen[start:end] |= seen[parent]
        seen[start:end, start:end] |= torch.ones(end - start, end - start, dtype=torch.bool).tril()
    return seen


@dataclass(frozen=True)
class _Item:
    """One tree and what is asked of it: for each continuation, (place whose logits count, the token that follows)."""

    index: int
    tree: Tree
    wanted: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def places(self) -> list[int]:
        return sorted({place for path in self.wanted for place, _ in path})


def _item(index: int, choices: Choices, skip: int) -> _Item:
    """`skip` tokens of the context stand in a shared prefix."""
    context = choices.context[skip:]
    # The last token predicts nothing that is asked.
    tree = tree_of([(*context, *one[:-1]) for one in choices.continuations])
    wanted = tuple(
        tuple(zip(path[len(context) - 1 :], one, strict=True))
        for path, one in zip(tree.paths, choices.continuations, strict=True)
    )
    return _Item(index, tree, wanted)


def _flat_items(choices: Sequence[Choices]) -> Iterator[tuple[int, int, _Item]]:
    """Each continuation as a sequence of its own: for models that cannot share."""
    for index, one in enumerate(choices):
        for number, continuation in enumerate(one.continuations):
            yield index, number, _item(0, Choices(one.context, (continuation,)), 0)


def likelihoods(
    forward: Forward, choices: Sequence[Choices], *, share: bool, vocabulary: int, chunk: int, device: str, pad: int
) -> Iterator[tuple[int, list[Likelihood]]]:
    """(index, likelihood of each continuation) in any order, longest first. `chunk` bounds a pass's tokens with padding.

    log p(continuation | context) = sum over its tokens of log softmax(logits of the token before)[token], in fp32.
    """
    if not choices:
        return
    if not share:
        found: dict[int, dict[int, Likelihood]] = {}
        flat = list(_flat_items(choices))
        items = [_Item(at, item.tree, item.wanted) for at, (_, _, item) in enumerate(flat)]
        for at, (one,) in _scored(forward, items, None, vocabulary, chunk, device, pad, plain=True):
            index, number, _ = flat[at]
            found.setdefault(index, {})[number] = one
            if len(found[index]) == len(choices[index].continuations):
                yield index, [found[index][number] for number in range(len(found[index]))]
        return
    from evals.engines.decode import MIN_PREFIX, read_prefix, shared_by_all

    length = shared_by_all([one.context for one in choices]) if len(choices) > 1 else 0
    prefix = read_prefix(forward, choices[0].context[:length], None, device) if length >= MIN_PREFIX else None
    items = [_item(index, one, len(prefix) if prefix else 0) for index, one in enumerate(choices)]
    yield from _scored(forward, items, prefix, vocabulary, chunk, device, pad, plain=False)


def _scored(
    forward: Forward,
    items: Sequence[_Item],
    prefix: Prefix | None,
    vocabulary: int,
    chunk: int,
    device: str,
    pad: int,
    *,
    plain: bool,
) -> Iterator[tuple[int, list[Likelihood]]]:
    import torch

    for batch in _batches(items, chunk, max(1, MAX_LOGITS // vocabulary)):
        width = max(len(item.tree.ids) for item in batch)
        ids = [item.tree.ids + [pad] * (width - len(item.tree.ids)) for item in batch]
        picked = [(row, place) for row, item in enumerate(batch) for place in item.places]
        this = None if plain else _packed(batch, width, prefix, device)
        logits = forward(ids, this, picked)
        at = {place: number for number, place in enumerate(picked)}
        asked = [(at[row, place], token) for row, item in enumerate(batch) for path in item.wanted for place, token in path]
        with torch.inference_mode():
            rows, tokens = torch.tensor(asked, device=logits.device).T
            # A few rows at a time: what they need stays in the processor's cache, and is not asked anew of the system.
            parts = logits.split(ROWS)
            total = torch.cat([part.float().logsumexp(-1) for part in parts])
            highest = torch.cat([part.amax(-1) for part in parts])
            chosen = logits[rows, tokens]
            values = (chosen.float() - total[rows]).tolist()
            best = (chosen >= highest[rows]).tolist()
        start = 0
        for item in batch:
            answers = []
            for path in item.wanted:
                end = start + len(path)
                answers.append(Likelihood(math.fsum(values[start:end]), len(path), all(best[start:end])))
                start = end
            yield item.index, answers


def _packed(batch: Sequence[_Item], width: int, prefix: Prefix | None, device: str) -> Packed:
    import torch

    start = len(prefix) if prefix else 0
    positions = torch.tensor([item.tree.depths + [0] * (width - len(item.tree.depths)) for item in batch], device=device)
    if all(len(item.tree.segments) == 1 for item in batch):
        return Packed(positions + start, prefix)  # plain sequences: causal attention, padding comes last
    seen = torch.stack([sees(item.tree, width) for item in batch])[:, None].to(device)
    return Packed(positions + start, prefix, seen=seen)


def _batches(items: Sequence[_Item], chunk: int, places: int) -> Iterator[list[_Item]]:
    """Items of like size together, up to `chunk` padded tokens and `places` scored ones (one item at least)."""
    batch: list[_Item] = []
    count = 0
    for item in sorted(items, key=lambda one: len(one.tree.ids), reverse=True):
        more = len(item.places)
        if batch and (len(batch[0].tree.ids) * (len(batch) + 1) > chunk or count + more > places):
            yield batch
            batch, count = [], 0
        batch.append(item)
        count += more
    if batch:
        yield batch


@dataclass(frozen=True)
class Compared:
    """Two models on one text, a value for each of its tokens behind what is given: KL(base || tuned) where it is predicted, and the
    token's negative log-probability under each. Nats."""

    kl: tuple[float, ...]
    base: tuple[float, ...]
    tuned: tuple[float, ...]


def kl(p: Any, q: Any) -> Any:
    """(places,): the sum over the last axis of p log(p / q), in nats, of log-probabilities (Kullback and Leibler 1951)."""
    return (p.exp() * (p - q)).sum(-1)


def compared(
    base: Forward,
    tuned: Forward,
    texts: Sequence[Sequence[int]],
    *,
    given: int,
    share: bool,
    vocabulary: int,
    device: str,
    pad: int,
) -> Iterator[tuple[int, Compared]]:
    """(index, both models on it) of each token sequence (two tokens at least), longest first; one pass of each model.

    `base` and `tuned` are forward functions of models with one vocabulary. The first `given` tokens are the same in all texts and
    are not predicted; with `share` each model reads them once.
    """
    from evals.engines.decode import read_prefix

    # The last of those given is read with each text: what follows is predicted from it.
    skip = given - 1 if share and len(texts) > 1 else 0
    prefixes = [read_prefix(one, texts[0][:skip], None, device) if skip > 0 else None for one in (base, tuned)]
    texts, first = [one[max(0, skip) :] for one in texts], max(0, given - 1 - max(0, skip))
    most = max(1, MAX_LOGITS // vocabulary // 2)
    order = sorted(range(len(texts)), key=lambda one: len(texts[one]), reverse=True)
    while order:
        width = len(texts[order[0]])
        take = max(1, most // width)
        batch, order = order[:take], order[take:]
        ids = [[*texts[one], *[pad] * (width - len(texts[one]))] for one in batch]
        found: list[list[tuple[float, float, float]]] = [[] for _ in batch]
        # A long text's positions are read a part at a time.
        places = [(row, place) for row, one in enumerate(batch) for place in range(first, len(texts[one]) - 1)]
        these = [_behind(one, len(batch), width, device) for one in prefixes]
        for start in range(0, len(places), most):
            part = places[start : start + most]
            following = [ids[row][place + 1] for row, place in part]
            values = _both(base(ids, these[0], part), tuned(ids, these[1], part), following)
            for (row, _), value in zip(part, values, strict=True):
                found[row].append(value)
        for row, one in enumerate(batch):
            yield one, Compared(*zip(*found[row], strict=True))


def _behind(prefix: Prefix | None, rows: int, width: int, device: str) -> Packed | None:
    """Plain sequences behind a prefix: causal attention, padding comes last."""
    import torch

    if prefix is None:
        return None
    start = len(prefix)
    return Packed(torch.arange(start, start + width, device=device).expand(rows, width), prefix)


def _both(base: Any, tuned: Any, following: Sequence[int]) -> list[tuple[float, float, float]]:
    """Of logits (places, vocabulary): at each place KL, and the negative log-probabilities of the token that follows there."""
    import torch

    found: list[tuple[float, float, float]] = []
    tokens = torch.tensor(following, device=base.device)[:, None]
    with torch.inference_mode():
        # A few rows at a time, as in `_scored`.
        for one, other, right in zip(base.split(ROWS), tuned.split(ROWS), tokens.split(ROWS), strict=True):
            p, q = (logits.float().log_softmax(-1) for logits in (one, other))
            chosen = [(-logprobs.gather(-1, right)[:, 0]).tolist() for logprobs in (p, q)]
            found += zip(kl(p, q).tolist(), *chosen, strict=True)
    return found
