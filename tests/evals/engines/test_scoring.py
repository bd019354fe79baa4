"""Log-likelihoods against their definition: one sequence at a time, all logits, one softmax."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.engines import scoring
from evals.engines.budget import Budget
from evals.engines.engine import Message, ScoreRequest
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.scoring import Choices, Likelihood, sees, tree_of
from evals.errors import AdvisorError
from evals.events import ignore
from tests.evals.engines.test_hf_engine import make_adapter


@pytest.fixture(scope="module", params=["tiny_model", "tiny_gemma"])
def engine(request: pytest.FixtureRequest) -> HfEngine:
    return HfEngine(ModelHandle(str(request.getfixturevalue(request.param)), "float32", ignore))


def logprobs(engine: HfEngine, ids: Sequence[int]) -> Any:
    """(tokens - 1, vocabulary): what each token says of the next."""
    import torch

    with torch.inference_mode(), engine.active():
        return engine.handle.model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].log_softmax(-1)


def defined(engine: HfEngine, choices: Choices) -> list[Likelihood]:
    found = []
    for ending in choices.continuations:
        rows = logprobs(engine, (*choices.context, *ending))[len(choices.context) - 1 :]
        total = math.fsum(float(row[token]) for row, token in zip(rows, ending, strict=True))
        greedy = all(int(row.argmax()) == token for row, token in zip(rows, ending, strict=True))
        found.append(Likelihood(total, len(ending), greedy))
    return found


def tokens(generator: random.Random, low: int, high: int) -> tuple[int, ...]:
    return tuple(generator.randrange(3, 90) for _ in range(generator.randint(low, high)))


def some_choices(shared: int) -> list[Choices]:
    """Contexts with a common beginning of `shared` tokens; endings that begin alike, equal others, or are part of others."""
    generator = random.Random(5)
    head = tokens(generator, shared, shared)
    found = []
    for _ in range(9):
        stem = tokens(generator, 2, 6)
        endings = (stem, (*stem, 7), (*stem, 7), (*stem, *tokens(generator, 1, 40)), (stem[0],), tokens(generator, 1, 9))
        found.append(Choices((*head, *tokens(generator, 1, 30)), endings))
    return found


def check(engine: HfEngine, choices: Sequence[Choices]) -> None:
    found = dict(engine.likelihoods(choices))
    assert sorted(found) == list(range(len(choices)))
    for index, one in enumerate(choices):
        for ours, theirs in zip(found[index], defined(engine, one), strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=2e-4)
            assert (ours.tokens, ours.greedy) == (theirs.tokens, theirs.greedy)


@pytest.mark.parametrize("shared", [0, 50])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("chunk", [1, 200, 4096])
def test_likelihoods_are_those_of_each_sequence_alone(
    engine: HfEngine, shared: int, shares: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.handle.shares
    monkeypatch.setitem(engine.handle.__dict__, "shares", shares)
    monkeypatch.setitem(engine.handle.__dict__, "budget", Budget(chunk, 8))
    check(engine, some_choices(shared))
    check(engine, some_choices(shared)[:1])


def test_few_logits_at_a_time_give_the_same(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MAX_LOGITS", engine.handle.vocabulary * 20)
    check(engine, some_choices(50))


def test_greedy_endings_are_recognised(engine: HfEngine) -> None:
    context = (5, 8, 13)
    ids = list(context)
    for _ in range(4):
        ids.append(int(logprobs(engine, [*ids, 0])[-1].argmax()))
    (_, (right, wrong)), *_ = engine.likelihoods([Choices(context, (tuple(ids[3:]), (*ids[3:6], 3 if ids[6] != 3 else 4)))])
    assert (right.greedy, wrong.greedy) == (True, False)


def test_shared_tokens_are_read_once(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = ModelHandle.forward
    assert engine.handle.shares
    monkeypatch.setattr(
        ModelHandle, "forward", lambda self, ids, *more: read.append(sum(map(len, ids))) or forward(self, ids, *more)
    )
    monkeypatch.setitem(engine.handle.__dict__, "budget", Budget(4096, 8))
    context = tuple(range(3, 63))
    asked = [Choices((*context, 70 + number), tuple((80, 3 + label) for label in range(20))) for number in range(5)]
    list(engine.likelihoods(asked))
    # The context once; then of each item its own token and the endings' first one, which they share.
    assert read == [60, 5 * 2]


sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=8)


@given(sequences)
def test_a_tree_holds_every_sequence_and_no_token_twice(given_: list[list[int]]) -> None:
    tree = tree_of(given_)
    for sequence, path in zip(given_, tree.paths, strict=True):
        assert [tree.ids[place] for place in path] == sequence
        assert [tree.depths[place] for place in path] == list(range(len(sequence)))
        assert [tree.parents[place] for place in path] == [-1, *path[:-1]]
    assert len(tree.ids) == len({tuple(one[: end + 1]) for one in given_ for end in range(len(one))})
    seen = sees(tree, len(tree.ids) + 2)
    for place in range(len(tree.ids)):
        line, at = set(), place
        while at >= 0:
            line.add(at)
            at = tree.parents[at]
        assert {int(one) for one in seen[place].nonzero()} == line
    assert seen[-1].sum() == 1


def test_text_is_scored_as_the_answer_to_its_prompt(engine: HfEngine) -> None:
    messages = (Message("user", "Which colour?"),)
    (name, found), *_ = engine.score([ScoreRequest("q", messages, ("red", "blue"))])
    ids = tuple(engine.prompt_ids(messages))
    tokenizer = engine.handle.tokenizer
    endings = tuple(tuple(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in ("red", "blue"))
    assert name == "q"
    for one, two in zip(found, defined(engine, Choices(ids, endings)), strict=True):
        assert one.logprob == pytest.approx(two.logprob, abs=2e-4)


def test_perplexity_is_that_of_the_mean_token(engine: HfEngine) -> None:
    texts = ["The lake is deep.", "xyz" * 300]
    found = engine.perplexity(texts)
    ids = engine.handle.tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    (whole,) = defined(engine, Choices((ids[0],), (tuple(ids[1:]),)))
    assert found[0] == pytest.approx(math.exp(-whole.logprob / whole.tokens), rel=1e-4)
    # 900 tokens in a context of 512: two windows, of which each gives its first token away.
    ids = engine.handle.tokenizer(texts[1], add_special_tokens=False)["input_ids"]
    parts = [defined(engine, Choices((part[0],), (tuple(part[1:]),)))[0] for part in (ids[:512], ids[512:])]
    mean = sum(one.logprob for one in parts) / sum(one.tokens for one in parts)
    assert found[1] == pytest.approx(math.exp(-mean), rel=1e-4)
    with pytest.raises(AdvisorError, match="one token"):
        engine.perplexity(["x"])


def test_divergence_follows_its_formula_and_is_nought_of_a_model_to_itself(tiny_model: Path, tmp_path: Path) -> None:
    base = HfEngine(ModelHandle(str(tiny_model), "float32", ignore))
    tuned = base.with_adapter(make_adapter(tiny_model, tmp_path / "a", 1), "a")
    texts = ["The lake is deep.", "Red.", "A longer line about pike and other fish of the lake."]
    assert base.divergence(base, texts) == [0.0, 0.0, 0.0]
    for text, found in zip(texts, base.divergence(tuned, texts), strict=True):
        ids = base.handle.tokenizer(text, add_special_tokens=False)["input_ids"]
        p, q = logprobs(base, ids), logprobs(tuned, ids)
        assert found == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
        assert found > 0
    with pytest.raises(AdvisorError, match="one token"):
        base.divergence(tuned, ["x"])
    # A few positions at a time give the same.
    before = base.divergence(tuned, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MAX_LOGITS", base.handle.vocabulary * 6)
        assert base.divergence(tuned, texts) == pytest.approx(before, rel=1e-5)


def test_memory_that_does_not_suffice_halves_the_pass(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.handle.shares
    monkeypatch.setitem(engine.handle.__dict__, "budget", Budget(4096, 8))
    model, sizes = engine.handle.base, []
    whole = model.forward

    def small(input_ids: Any, **more: Any) -> Any:
        sizes.append(input_ids.numel())
        if input_ids.numel() > 150:
            raise RuntimeError("out of memory")
        return whole(input_ids=input_ids, **more)

    choices = some_choices(0)
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", small)
        found = dict(engine.likelihoods(choices))
    assert max(sizes) > 150
    assert {index: len(one) for index, one in found.items()} == dict.fromkeys(range(len(choices)), 6)
    for ours, theirs in zip(found[3], defined(engine, choices[3]), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=2e-4)


@pytest.mark.parametrize("bad", [Choices((), ((1,),)), Choices((1,), ((),)), Choices((1,) * 500, ((2,) * 20,))])
def test_what_cannot_be_scored_is_an_error(engine: HfEngine, bad: Choices) -> None:
    with pytest.raises(AdvisorError):
        list(engine.likelihoods([bad]))
