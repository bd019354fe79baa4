"""Optimisation of our own: the proposer writes instructions, a race on training rows chooses.

After Zhou et al. 2023 (APE, 2211.01910), with a second round that is shown mistakes (Pryzant et al. 2023, 2305.03495).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress

from baselines.prompts.optimise.proposals import first_prompt, fitting, kept, mending_prompt
from baselines.prompts.optimise.search import BudgetSpent, Optimised, Search, Wording
from evals.statistics.race import lowest, rejects_schedule

EXAMPLES = 6
# Rows that the best so far is asked, for its mistakes.
LOOKED_AT = 12
# Requests a proposal should be worth; a dozen proposals are a race that a small budget can still run.
REQUESTS_EACH = 30
MAX_PROPOSALS = 16


def propose(search: Search) -> Optimised:
    """Two rounds: proposals from examples, then proposals from the mistakes of the best so far; each is raced.

    Half of the budget is the first round's. With a proposer that writes nothing of use the proposals are refused before
    they are asked, or leave the race after its first few rows.
    """
    count = max(1, min(MAX_PROPOSALS, search.meter.budget // REQUESTS_EACH))
    with suppress(BudgetSpent):
        first = _first(search, count)
        race(search, [*search.incumbents, *first], search.meter.left - search.meter.budget // 2)
        best = _best(search)
        finalists = race(search, _once([*search.incumbents, best, *_second(search, best, count)]), search.meter.left)
        _go_on(search, finalists)
    return search.outcome("propose")


def _first(search: Search, count: int) -> list[Wording]:
    """Each proposal is shown other examples."""
    draw = random.Random(search.seed)
    prompts = [
        fitting(search.proposer, first_prompt(search, draw.sample(list(search.learn), min(EXAMPLES, len(search.learn)))))
        for _ in range(count)
    ]
    return _proposed(search, prompts, 0, search.incumbents)


def _second(search: Search, best: Wording, count: int) -> list[Wording]:
    """Each proposal is shown other mistakes. Without mistakes there is nothing to mend."""
    draw = random.Random(search.seed + 1)
    rows = draw.sample(list(search.learn), min(LOOKED_AT, len(search.learn)))
    scores, outputs = search.score(best, rows)
    wrong = [(row, said) for row, said, score in zip(rows, outputs, scores, strict=True) if score < 1]
    if not wrong:
        return []
    prompts = [
        fitting(search.proposer, mending_prompt(search, best.instruction, draw.sample(wrong, min(EXAMPLES, len(wrong)))))
        for _ in range(count)
    ]
    return _proposed(search, prompts, count, [*search.incumbents, best])


def _proposed(search: Search, prompts: Sequence[str], first: int, before: Sequence[Wording]) -> list[Wording]:
    seeds = [search.seed * 1000 + first + at for at in range(len(prompts))]
    responses = search.propose(prompts, [seed % 2**31 for seed in seeds])
    texts = [(prompt, one.text, one.truncated) for prompt, one in zip(prompts, responses, strict=True)]
    return kept(search, texts, before)


def race(search: Search, wordings: Sequence[Wording], budget: int) -> list[Wording]:
    """Ask wordings about the validation rows by synchronized successive rejects (`rejects_schedule`); the last two.

    The best of the incumbents does not leave, so that the last comparison is with it, and on the same rows: the last phase
    decides nothing here (`Search.outcome` does). Raises BudgetSpent where the budget ends before the race does.
    """
    alive = list(wordings)
    for count in rejects_schedule(len(alive), budget, len(search.hold)):
        rows = search.hold[:count]
        if not rows:
            break
        means = [search.mean(one, rows) for one in alive]
        if len(alive) == 2:
            break
        stays = max((at for at, one in enumerate(alive) if one in search.incumbents), key=lambda at: (means[at], -at))
        others = [at for at in range(len(alive)) if at != stays]
        alive.pop(others[lowest([means[at] for at in others])])
    return alive


def _go_on(search: Search, finalists: Sequence[Wording]) -> None:
    """What is left of the budget goes to the last comparison: the finalists are asked as many more rows as it pays for.

    A race of a second round may also end on fewer rows than the incumbent has answered in the first.
    """
    counts = {one: len(search.answered(one, search.hold)) for one in finalists}
    rows = len(search.hold)
    while sum(max(0, rows - count) for count in counts.values()) > search.meter.left:
        rows -= 1
    for one in finalists:
        search.ask(one, search.hold[:rows])


def _best(search: Search) -> Wording:
    found = search.outcome("propose")
    return Wording(found.instruction, found.shots)


def _once(wordings: Sequence[Wording]) -> list[Wording]:
    return list(dict.fromkeys(wordings))
