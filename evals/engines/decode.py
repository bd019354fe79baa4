"""Decoding many prompts at once: rows enter a batch as others leave it, and nothing that they share is computed twice."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from evals.engines.attention import Decoding, Filling, Lanes, Packed, Prefix

if TYPE_CHECKING:
    from evals.engines.constrain import GrammarTokens, Matcher

# Shorter beginnings cost more to set up than they save.
MIN_PREFIX = 32
# A group takes two passes of its own: it has to save the reading of this many tokens, which takes as long.
MIN_SAVED = 256
# Tokens of prompts that enter in one go: a few seconds of reading on a processor.
PORTION = 16_384
# Rows enter together once this share of the batch stands empty: one forward pass fills them all.
REFILL = 1 / 8
# Prompts that need over this many times the room of others are decoded apart from them.
SPREAD = 2.0


@dataclass
class Row:
    """One request on its way. `ids` is the prompt without the prefix of all; `told` the tokens that progress has counted;
    `cached` how many of `ids` were read for another row of its group."""

    index: int
    ids: list[int]
    limit: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None
    logprob_wanted: bool = False
    matcher: Matcher | None = None
    generator: Any = None
    answer: list[int] = field(default_factory=list)
    logprob: float = 0.0
    seconds: float = 0.0
    told: int = 0
    cached: int = 0
    ended: bool = False
    truncated: bool = False

    @property
    def room(self) -> int:
        """Tokens that this row may come to hold."""
        return len(self.ids) + self.limit

    @property
    def tokens(self) -> list[int]:
        """What is to be read before the next token: the prompt, and the answer so far where the row starts again."""
        return self.ids + self.answer


# Rows that begin alike, and the number of tokens that they share (0 for a row alone).
Group = tuple[list[Row], int]


class OutOfMemoryError(Exception):
    """The device has no room for this many rows."""


class Store(Protocol):
    """Holds what the model remembers of each row. The logits returned are (rows, vocabulary), of each row's next token."""

    refills: bool

    def admit(self, groups: Sequence[Group], active: int) -> Any:
        """Read new rows behind the `active` ones, in the groups' order."""
        ...

    def step(self, rows: Sequence[Row]) -> Any:
        """Read each row's last token."""
        ...

    def keep(self, places: Sequence[int], before: int) -> None:
        """Go on with these of the `before` rows, in this order."""
        ...


def common(one: Sequence[int], two: Sequence[int]) -> int:
    """Number of tokens that both begin with."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def shared_by_all(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; at least one of each stays outside, since the next token's logits come from it."""
    low, high = min(prompts, key=tuple), max(prompts, key=tuple)
    return min(common(low, high), min(map(len, prompts)) - 1)


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Rows that begin alike, with the length of what they share (0 for those that stand alone), the longest first.

    Neighbours in sorted order share most; a row joins the group before it while they share MIN_PREFIX tokens and that does
    not lessen what the group saves. Groups that save less than MIN_SAVED tokens fall apart again.
    """
    groups: list[Group] = []
    for row in sorted(rows, key=lambda one: one.tokens):
        if groups:
            members, length = groups[-1]
            both = min(common(members[0].tokens, row.tokens), len(row.tokens) - 1, len(members[0].tokens) - 1)
            both = min(both, length) if len(members) > 1 else both
            if both >= MIN_PREFIX and both * len(members) >= length * (len(members) - 1):
                groups[-1] = ([*members, row], both)
                continue
        groups.append(([row], 0))
    groups = [one for members, length in groups for one in _worthwhile(members, length)]
    return sorted(groups, key=lambda group: max(len(one.tokens) for one in group[0]), reverse=True)


def _worthwhile(members: list[Row], length: int) -> list[Group]:
    if length * (len(members) - 1) >= MIN_SAVED:
        return [(members, length)]
    return [([row], 0) for row in members]


def waves(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by the room that they need, in lots whose rooms differ by less than SPREAD: a lane is as long as its lot's longest."""
    found: list[list[Row]] = []
    for row in sorted(rows, key=lambda one: one.room, reverse=True):
        if found and row.room * SPREAD > found[-1][0].room:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def decode(
    rows: Sequence[Row],
    store_for: Callable[[int, int], Store],
    lanes: Callable[[int], int],
    chooser: Chooser,
    told: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Row]:
    """Finished rows, as they finish. `told` hears after each pass of how many tokens less there are to come, of all limits.

    `store_for(lanes, capacity)` makes room; `lanes(capacity)` says how many rows there is memory for. Out of memory, the
    unfinished rows start again in half as many lanes as were in use, and keep what they have answered.
    """
    for wave in waves(rows):
        capacity = max(row.room for row in wave)
        count = max(1, min(lanes(capacity), len(wave)))
        todo = list(wave)
        while todo:
            unfinished: list[Row] = []
            try:
                yield from _decode_in(store_for(count, capacity), todo, count, chooser, unfinished, told)
                break
            except OutOfMemoryError:
                if len(unfinished) < 2:
                    raise
                count = len(unfinished) // 2
                todo = [row for row in todo if not row.ended]


def _decode_in(
    store: Store, rows: Sequence[Row], lanes: int, chooser: Chooser, active: list[Row], told: Callable[[int], None]
) -> Iterator[Row]:
    import torch

    waiting = deque(row for members, _ in grouped(rows) for row in members)
    while waiting or active:
        room = lanes - len(active)
        if waiting and (not active or (store.refills and room >= max(1, min(len(waiting), lanes * REFILL)))):
            groups = grouped(_portion(waiting, room))
            new = [row for members, _ in groups for row in members]
            before = len(active)
            active += new
            with _timed(new), torch.inference_mode():
                chooser.choose(new, store.admit(groups, before))
            told(_nearer(new))
        else:
            with _timed(active), torch.inference_mode():
                chooser.choose(active, store.step(active))
            told(_nearer(active))
        if any(row.ended for row in active):
            places = compacted([not row.ended for row in active])
            ended = [row for row in active if row.ended]
            with torch.inference_mode():
                store.keep(places, len(active))
            active[:] = [active[place] for place in places]
            yield from ended


def _portion(waiting: deque[Row], room: int) -> list[Row]:
    """The next rows, not so many that reading them would keep progress waiting."""
    rows: list[Row] = []
    left = PORTION
    while waiting and len(rows) < room and (not rows or len(waiting[0].tokens) <= left):
        rows.append(waiting.popleft())
        left -= len(rows[-1].tokens)
    return rows


def _nearer(rows: Sequence[Row]) -> int:
    """Tokens that a pass has written or, where a row ended, made needless."""
    before = sum(row.told for row in rows)
    for row in rows:
        row.told = row.limit if row.ended else len(row.answer)
    return sum(row.told for row in rows) - before


@contextmanager
def _timed(rows: Sequence[Row]) -> Iterator[None]:
    """Wall time, shared out among the rows that it was spent on."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    for row in rows:
        row.seconds += seconds / len(rows)


def compacted(keep: Sequence[bool]) -> list[int]:
    """Places of the rows to keep: holes among the first are filled with the last ones, all others stay where they are."""
    count = sum(keep)
    last = [place for place in range(count, len(keep)) if keep[place]]
    return [place if keep[place] else last.pop() for place in range(count)]


class Chooser:
    """The next token of each row from its logits, and whether the row ends with it."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], grammar: GrammarTokens | None) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.grammar = grammar

    def choose(self, rows: Sequence[Row], logits: Any) -> None:
        """Append a token to each row's answer. `logits` (rows, vocabulary) may be changed in place."""
        wanted = [place for place, row in enumerate(rows) if row.logprob_wanted]
        # Under the model itself: before a constraint takes tokens away.
        logprobs = logits[wanted].float().log_softmax(-1) if wanted else []
        matchers = [row.matcher for row in rows]
        if self.grammar is not None and any(matchers):
            self.grammar.mask(matchers, logits)
        tokens = logits.max(-1).indices.tolist()  # several times as fast as `argmax` on a processor
        drawn = [place for place, row in enumerate(rows) if row.temperature > 0]
        if drawn:
            found = _drawn(logits[drawn] if len(drawn) < len(rows) else logits, [rows[place] for place in drawn])
            for place, token in zip(drawn, found, strict=True):
                tokens[place] = token
        for place, known in zip(wanted, logprobs, strict=True):
            rows[place].logprob += float(known[tokens[place]])
        for row, token in zip(rows, tokens, strict=True):
            self._take(row, token)

    def _take(self, row: Row, token: int) -> None:
        if token in self.stop_ids:
            row.ended = True
            return
        row.answer.append(token)
        if row.matcher is not None:
            row.matcher.accept(token)
            row.ended = row.matcher.finished
        if row.stop and self._stopped(row):
            row.ended = True
        elif len(row.answer) >= row.limit and not row.ended:
            row.ended = row.truncated = True

    def _stopped(self, row: Row) -> bool:
        """Whether a stop string is there. Only the last tokens are read: a token more than the longest one has characters."""
        reach = max(map(len, row.stop)) + 4
        text = self.tokenizer.decode(row.answer[-reach:], skip_special_tokens=True)
        return any(one in text for one in row.stop)

    def text(self, row: Row) -> str:
        text: str = self.tokenizer.decode(row.answer, skip_special_tokens=True)
        ends = [at for one in row.stop if (at := text.find(one)) >= 0]
        return text[: min(ends)] if ends else text


def _drawn(logits: Any, rows: Sequence[Row]) -> list[int]:
    """A token of each row from softmax(logits / temperature), by the row's own generator: the rows beside it do not matter.

    By the inverse of the cumulative sum: one uniform number a row, where `torch.multinomial` draws one for each token of the
    vocabulary and takes longer than the model itself.
    """
    import torch

    temperatures = torch.tensor([row.temperature for row in rows], device=logits.device)
    sums = (logits.float() / temperatures[:, None]).softmax(-1).cumsum(-1, dtype=torch.float64).cpu()
    wanted = torch.cat([torch.rand(1, generator=_generator(row), dtype=torch.float64) for row in rows])[:, None] * sums[:, -1:]
    # The first sum above it: a token without weight adds nothing to the sum, and is never the first.
    below = torch.nextafter(sums[:, -1:], torch.zeros(1, dtype=torch.float64))
    found: list[int] = torch.searchsorted(sums, torch.minimum(wanted, below), right=True)[:, 0].tolist()
    return found


def _generator(row: Row) -> Any:
    import torch

    if row.generator is None:
        row.generator = torch.Generator(device="cpu")
        if row.seed is None:
            row.generator.seed()
        else:
            row.generator.manual_seed(row.seed)
    return row.generator


Forward = Callable[..., Any]


class LaneStore:
    """Lanes written in place, a prefix for all and prefixes of groups: for models that run with our attention."""

    refills = True

    def __init__(
        self, forward: Forward, lanes: int, capacity: int, prefix: Prefix | None, *, device: str, chunk: int, pad: int
    ) -> None:
        self.forward = forward
        self.lanes = Lanes(lanes, capacity)
        self.prefix = prefix
        self.device = device
        self.chunk = chunk
        self.pad = pad
        self.filled: list[int] = []

    def admit(self, groups: Sequence[Group], active: int) -> Any:
        """What the members of a group share is read once and copied into each one's lane; then the rest of each."""
        import torch

        first = active
        for members, length in groups:
            if length:
                own = read_prefix(self.forward, members[0].tokens[:length], self.prefix, self.device)
                self.lanes.seed(own, first, len(members))
                _credit(members[1:], length)
            first += len(members)
        first, found = active, []
        for rows, length in self._batches(groups):
            found.append(self._fill(rows, first, length))
            first += len(rows)
        self.filled += [len(row.tokens) for members, _ in groups for row in members]
        return torch.cat(found)

    def _batches(self, groups: Sequence[Group]) -> Iterator[Group]:
        """Rows that share as much, up to `chunk` tokens with the padding."""
        batch: list[Row] = []
        length = 0
        widest = 0
        for members, shared in groups:
            for row in members:
                width = max(widest, len(row.tokens) - shared)
                if batch and (shared != length or width * (len(batch) + 1) > self.chunk):
                    yield batch, length
                    batch, widest = [], 0
                    width = len(row.tokens) - shared
                batch.append(row)
                length, widest = shared, width
        if batch:
            yield batch, length

    def _fill(self, rows: Sequence[Row], first: int, shared: int) -> Any:
        tails = [row.tokens[shared:] for row in rows]
        width = max(map(len, tails))
        this = Filling(self.lanes, first, shared, width, len(rows), self.prefix, self.device)
        return self.forward(
            [tail + [self.pad] * (width - len(tail)) for tail in tails],
            this,
            [(place, len(tail) - 1) for place, tail in enumerate(tails)],
        )

    def step(self, rows: Sequence[Row]) -> Any:
        this = Decoding(self.lanes, self.filled, self.prefix, self.device)
        logits = self.forward([[row.answer[-1]] for row in rows], this, None)
        self.filled = [length + 1 for length in self.filled]
        return logits

    def keep(self, places: Sequence[int], before: int) -> None:
        for target, source in enumerate(places):
            if source != target:
                self.lanes.copy(source, target, self.filled[source])
        self.filled = [self.filled[place] for place in places]


def _credit(rows: Sequence[Row], length: int) -> None:
    """Count what was read for another row. A row that starts again may share its answer's beginning too: that is no prompt."""
    for row in rows:
        row.cached = max(row.cached, min(length, len(row.ids)))


def read_prefix(forward: Forward, ids: Sequence[int], before: Prefix | None, device: str) -> Prefix:
    """Keys and values of tokens (behind a prefix, where there is one), from one forward pass."""
    import torch

    prefix = Prefix(tuple(ids))
    start = len(before) if before else 0
    positions = torch.arange(start, start + len(ids), device=device)[None]
    forward([list(ids)], Packed(positions, before, record=prefix), [(0, len(ids) - 1)])
    return prefix


class PlainStore:
    """transformers' own cache, padded on the left, for models that only run their own way. Finished rows leave it.

    `recurrent`: the model hands on a state instead of keys (Mamba). It takes no positions, and a mask with the prompt only.
    """

    refills = False

    def __init__(self, model: Callable[..., Any], device: str, pad: int, *, recurrent: bool) -> None:
        self.model = model
        self.device = device
        self.pad = pad
        self.recurrent = recurrent
        self.cache: Any = None
        self.mask: Any = None

    def admit(self, groups: Sequence[Group], active: int) -> Any:
        import torch

        rows = [row for members, _ in groups for row in members]
        width = max(len(row.tokens) for row in rows)
        ids = [[self.pad] * (width - len(row.tokens)) + row.tokens for row in rows]
        self.cache = None
        self.mask = torch.tensor([[0] * (width - len(row.tokens)) + [1] * len(row.tokens) for row in rows], device=self.device)
        return self._ask(torch.tensor(ids, device=self.device), (self.mask.cumsum(-1) - 1).clamp(min=0))

    def step(self, rows: Sequence[Row]) -> Any:
        import torch

        self.mask = torch.cat([self.mask, self.mask.new_ones(len(rows), 1)], 1)
        ids = torch.tensor([[row.answer[-1]] for row in rows], device=self.device)
        return self._ask(ids, self.mask.sum(-1, keepdim=True) - 1)

    def _ask(self, ids: Any, positions: Any) -> Any:
        given = {"input_ids": ids, "use_cache": True, "logits_to_keep": 1}
        if self.recurrent:
            out = self.model(**given, attention_mask=self.mask if self.cache is None else None, cache_params=self.cache)
            self.cache = out.cache_params
        else:
            out = self.model(**given, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache)
            self.cache = out.past_key_values
        return out.logits[:, -1]

    def keep(self, places: Sequence[int], before: int) -> None:
        import torch

        if list(places) == list(range(before)) or not places:
            return
        at = torch.tensor(places, device=self.device)
        # Selects as well as it reorders, and every kind of layer's cache has it.
        self.cache.reorder_cache(at)
        self.mask = self.mask[at]
