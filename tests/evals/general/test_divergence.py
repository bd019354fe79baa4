"""KL and perplexity of a tuned model against its base: nothing at scale 0, growing with the scale, and as plain transformers has it."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evals.engines.engine import Message
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError
from evals.events import ignore
from evals.general import divergence as module
from evals.general.divergence import asked_divergence, divergence, general_divergence, general_texts, prompt_divergence
from evals.general.suites import TASKS
from tests.evals.engines.test_hf_engine import make_adapter

TEXTS = ["The lake is deep.", "Red and blue.", "A longer line about pike and other fish of the lake."]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> HfEngine:
    return HfEngine(ModelHandle(str(tiny_model), "float32", ignore))


def ids_of(engine: HfEngine, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = engine.handle.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def scaled(base: HfEngine, model: Path, folder: Path, alpha: int) -> HfEngine:
    """The same random adapter at a scale: lora_alpha is linear in what it adds."""
    return base.with_adapter(make_adapter(model, folder / str(alpha), 1, alpha), f"x{alpha}")


def test_a_model_is_no_distance_from_itself_and_an_adapter_at_scale_0_is_the_base(
    base: HfEngine, tiny_model: Path, tmp_path: Path
) -> None:
    ids = ids_of(base, TEXTS)
    own = divergence("own", base, base, ids)
    assert (own.kl, own.ratio, own.tuned) == (0.0, 1.0, own.base)
    assert own.kl_low <= 0.0 <= own.kl_high < 1e-9
    assert divergence("x", base, scaled(base, tiny_model, tmp_path, 0), ids) == pytest.approx(divergence("x", base, base, ids))


def test_the_kl_grows_with_the_scale_of_the_adapter(base: HfEngine, tiny_model: Path, tmp_path: Path) -> None:
    ids = ids_of(base, TEXTS)
    found = [divergence("x", base, scaled(base, tiny_model, tmp_path, alpha), ids).kl for alpha in (0, 1, 2, 4, 8)]
    assert found[0] == pytest.approx(0.0, abs=1e-9)
    assert all(a < b for a, b in pairwise(found))
    # The base is not touched by having had adapters on.
    assert divergence("x", base, base, ids).kl == 0.0


def plain(base: Path, adapter: Path, ids: list[list[int]]) -> tuple[float, float, float, int]:
    """(KL, mean negative log-probability of base and tuned, tokens) by transformers and peft, a text at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    kl, losses, tokens = 0.0, [0.0, 0.0], 0
    for one in ids:
        given = torch.tensor([one])
        with torch.no_grad():
            p, q = (each(input_ids=given).logits[0, :-1].double().log_softmax(-1) for each in (model, tuned))
            kl += float(torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True))
            for at, each in enumerate((p, q)):
                losses[at] += float(torch.nn.functional.nll_loss(each, given[0, 1:], reduction="sum"))
        tokens += len(one) - 1
    return kl / tokens, losses[0] / tokens, losses[1] / tokens, tokens


def test_both_measures_are_those_of_plain_transformers(base: HfEngine, tiny_model: Path, tmp_path: Path) -> None:
    ids = ids_of(base, TEXTS)
    tuned = scaled(base, tiny_model, tmp_path, 16)
    found = divergence("x", base, tuned, ids)
    kl, before, after, tokens = plain(tiny_model, tmp_path / "16", ids)
    assert (found.texts, found.tokens) == (3, tokens)
    assert found.kl == pytest.approx(kl, rel=1e-4)
    assert found.base == pytest.approx(math.exp(before), rel=1e-4)
    assert found.tuned == pytest.approx(math.exp(after), rel=1e-4)
    assert found.ratio == pytest.approx(math.exp(after - before), rel=1e-4)
    assert found.kl_low < found.kl < found.kl_high
    assert found.ratio_low < found.ratio < found.ratio_high


def test_intervals_take_a_text_for_a_cluster(base: HfEngine, tiny_model: Path, tmp_path: Path) -> None:
    tuned = scaled(base, tiny_model, tmp_path, 8)
    once = divergence("x", base, tuned, ids_of(base, TEXTS))
    # More tokens of the same text are no more evidence: the width is that of the texts.
    many = divergence("x", base, tuned, ids_of(base, TEXTS * 8))
    assert many.kl == pytest.approx(once.kl)
    assert many.kl_high - many.kl_low < (once.kl_high - once.kl_low) / 2
    (one,) = ids_of(base, [TEXTS[2]])
    alone = divergence("x", base, tuned, [one])
    # Of one text nothing is known beyond it.
    assert alone.kl_high - alone.kl_low > 10 * (many.kl_high - many.kl_low)


def asked(text: str) -> tuple[Message, ...]:
    return (Message("system", "Say what the colour of the thing is, in a word."), Message("user", text))


def test_of_prompts_what_all_begin_with_counts_once_for_none(base: HfEngine, tiny_model: Path, tmp_path: Path) -> None:
    tuned = scaled(base, tiny_model, tmp_path, 8)
    prompts = [asked("A lemon"), asked("The sky"), asked("Grass")]
    found = prompt_divergence(base, tuned, prompts)
    assert found is not None
    ids = [base.prompt_ids(one) for one in prompts]
    shared = next(at for at in range(200) if len({one[at] for one in ids}) > 1)
    assert found.tokens == sum(len(one) - shared for one in ids)
    import torch

    total = 0.0
    for one in ids:
        with torch.inference_mode():
            p, q = (_logits(engine, one)[shared - 1 : -1].log_softmax(-1) for engine in (base, tuned))
            total += float((p.exp() * (p - q)).sum())
    assert found.kl == pytest.approx(total / found.tokens, rel=1e-3)
    assert prompt_divergence(base, tuned, []) is None
    assert prompt_divergence(base, tuned, [asked("Grass")] * 3) is None


def test_asked_prompts_are_compared_to_the_place_where_the_answer_begins(
    base: HfEngine, tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    tuned = scaled(base, tiny_model, tmp_path, 8)
    prompts = ["A lemon", "The sky at night", "Grass"]
    ids = [base.prompt_ids((Message("user", one),)) for one in prompts]
    shared = next(at for at in range(200) if len({one[at] for one in ids}) > 1)
    assert shared > 1
    kl: list[float] = []
    for one in ids:
        with torch.inference_mode():
            # One place more than of a prompt's own tokens: where the next one is the answer's.
            p, q = (_logits(engine, one)[shared - 1 :].log_softmax(-1) for engine in (base, tuned))
            kl += (p.exp() * (p - q)).sum(-1).tolist()
    found = asked_divergence(base, tuned, prompts)
    assert found == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert asked_divergence(base, base, prompts) == 0.0
    # One alone is read whole.
    assert asked_divergence(base, tuned, prompts[:1]) > 0.0


def test_what_is_given_is_read_once_and_changes_no_value(base: HfEngine, tiny_model: Path, tmp_path: Path) -> None:
    tuned = scaled(base, tiny_model, tmp_path, 8)
    start = ids_of(base, ["The lake is deep and the"])[0]
    texts = [[*start, *one] for one in ids_of(base, [" pike swims", " boat", " grass is green and long"])]
    whole = base.compared(tuned, texts)
    for given in range(1, len(start) + 1):
        for one, all_of_it in zip(base.compared(tuned, texts, given), whole, strict=True):
            assert one.kl == pytest.approx(all_of_it.kl[given - 1 :], rel=1e-3, abs=1e-7)
            assert one.tuned == pytest.approx(all_of_it.tuned[given - 1 :], rel=1e-4)
    with pytest.raises(AdvisorError, match="says nothing"):
        base.compared(tuned, [start], len(start))


def _logits(engine: HfEngine, ids: list[int]) -> Any:
    import torch

    with engine.active():
        return engine.handle.model(input_ids=torch.tensor([ids])).logits[0]


def test_prompts_are_read_as_far_as_the_budget_goes(base: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [asked(f"Thing {at}") for at in range(30)]
    length = len(base.prompt_ids(prompts[0]))
    monkeypatch.setattr(module, "MAX_PROMPT_TOKENS", 5 * length)
    found = prompt_divergence(base, base, prompts)
    assert found is not None
    assert found.texts == 5
    # One prompt that is longer than the budget is read all the same, up to the context.
    long = prompt_divergence(base, base, [asked("long " * 300)])
    assert long is not None
    assert long.tokens == base.context_length - 1


def test_weights_that_are_no_numbers_are_an_error(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    engine = HfEngine(ModelHandle(str(tiny_model), "float32", ignore))
    tuned = engine.with_adapter(make_adapter(tiny_model, tmp_path / "a", 1), "a")
    with tuned.active(), torch.no_grad():
        next(one for name, one in engine.handle.model.named_parameters() if "lora_B" in name).fill_(math.nan)
    with pytest.raises(AdvisorError, match="not numbers"):
        general_divergence(engine, tuned)


def test_the_general_texts_are_many_short_and_none_of_the_suite_or_of_replay(base: HfEngine) -> None:
    texts = general_texts()
    assert len(texts) >= 50
    assert len(set(texts)) == len(texts)
    assert all(20 <= len(one.split()) <= 60 for one in texts)
    grams = {gram for one in texts for gram in eight_words(one)}
    rows = [json.loads(line) for path in TASKS.rglob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows
    assert not grams & {gram for row in rows for value in row.values() for gram in eight_words(str(value))}
    found = general_divergence(base, base)
    assert (found.texts, found.kl) == (len(texts), 0.0)


def eight_words(text: str) -> set[tuple[str, ...]]:
    words = "".join(one if one.isalnum() else " " for one in text.lower()).split()
    return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}
