"""Our engine under lm-eval against lm-eval's own class for transformers models, request by request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.scoring import Choices
from evals.errors import AdvisorError
from evals.events import ignore
from evals.general.fast import fast_lm

SAME = 1e-3


def requests(kind: str, *asked: tuple[int, tuple[Any, ...]]) -> list[Any]:
    """lm-eval's requests of (item, arguments)."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, at, metadata=("task", item, 1)) for at, (item, args) in enumerate(asked)]


class Both:
    """A model as our engine under lm-eval, and as lm-eval's own class with weights of its own."""

    def __init__(self, folder: Path) -> None:
        import torch
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM

        self.engine = HfEngine(ModelHandle(str(folder), "float32", ignore))
        self.told: list[int] = []
        self.ours = fast_lm(self.engine, self.told.append)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.theirs = HFLM(pretrained=plain, tokenizer=self.engine.handle.tokenizer, batch_size=4)


def with_first_token(folder: Path, made: Path) -> Path:
    """The model with a tokeniser that puts a token before every text, as Llama's does."""
    shutil.copytree(folder, made)
    body = json.loads((made / "tokenizer.json").read_text())
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    body["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, sequence],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    (made / "tokenizer.json").write_text(json.dumps(body))
    settings = json.loads((made / "tokenizer_config.json").read_text())
    (made / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<|im_start|>"}))
    return made


@pytest.fixture(scope="module", params=["llama", "sliding window", "a token before all"])
def both(
    request: pytest.FixtureRequest, tiny_model: Path, tiny_gemma: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    if request.param == "a token before all":
        yield Both(with_first_token(tiny_model, tmp_path_factory.mktemp("bos") / "tiny"))
    else:
        yield Both(tiny_model if request.param == "llama" else tiny_gemma)


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Both:
    return Both(tiny_model)


def test_log_likelihoods_are_those_of_lm_eval(both: Both) -> None:
    """Shared contexts, spaces before the split, no context, one token, a mark that stands there already, and far too long."""
    asked = requests(
        "loglikelihood",
        (0, ("Question: what is red?\nAnswer:", " a colour")),
        (0, ("Question: what is red?\nAnswer:", " a number")),
        (0, ("Question: what is red?\nAnswer:", " a")),
        (1, ("The sky is ", "blue")),
        (1, ("The sky is  ", "grey and low")),
        (2, ("", "No context at all.")),
        (2, ("", "No context is here.")),
        (3, ("<|im_start|>user\nHello", " there")),
        (4, ("".join(f"{number} and " for number in range(120)), "one end")),
        (4, ("".join(f"{number} and " for number in range(120)), "another and longer end")),
        (5, ("x", "y" * 512)),
    )
    ours, theirs = both.ours.loglikelihood(asked), both.theirs.loglikelihood(asked, disable_tqdm=True)
    assert [one[0] for one in ours] == pytest.approx([one[0] for one in theirs], abs=SAME)
    assert [one[1] for one in ours] == [one[1] for one in theirs]
    assert len({round(one[0], 2) for one in ours}) == len(ours)


def test_greedy_continuations_are_known_as_such(plain: Both) -> None:
    (answer,) = plain.theirs.generate_until(requests("generate_until", (0, ("Say it:", {"until": [], "max_gen_toks": 4}))))
    asked = requests("loglikelihood", (0, ("Say it:", answer)), (0, ("Say it:", answer + "q")))
    assert [one[1] for one in plain.ours.loglikelihood(asked)] == [True, False]


def test_a_long_text_is_read_in_the_same_windows(both: Both) -> None:
    texts = ["short", "".join(f"{number}, " for number in range(400)), "z" * 512, "z" * 513]
    asked = requests("loglikelihood_rolling", *((at, (text,)) for at, text in enumerate(texts)))
    ours = both.ours.loglikelihood_rolling(asked)
    assert ours == pytest.approx(both.theirs.loglikelihood_rolling(asked, disable_tqdm=True), rel=1e-5)


def test_answers_are_those_of_lm_eval(both: Both) -> None:
    """Stop strings (one of them a mark), the limit, a prompt that leaves no room, and settings that differ from row to row."""
    # None is part of a mark's name: HFLM takes that for the stop string itself.
    letters = "bcfghjko"
    asked = requests(
        "generate_until",
        *((at, (f"Item {letters[at]}:", {"until": [letters[at], "\n\n"], "max_gen_toks": 24})) for at in range(8)),
        (8, ("Until the mark", {"until": ["<|im_start|>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 40})),
        (9, ("too long " * 80, {"until": [], "max_gen_toks": 30})),
        (10, ("A single stop", {"until": "q", "max_gen_toks": 12})),
    )
    ours = both.ours.generate_until(asked)
    assert ours == both.theirs.generate_until(asked, disable_tqdm=True)
    assert len(set(ours)) > 6


def test_the_chat_template_is_the_models(plain: Both) -> None:
    turns = [{"role": "user", "content": "Hello"}]
    assert plain.ours.apply_chat_template(turns) == plain.theirs.apply_chat_template(turns)
    begun = [*turns, {"role": "assistant", "content": "Well"}]
    assert plain.ours.apply_chat_template(begun, add_generation_prompt=False).endswith("Well")


def test_choices_of_an_item_are_one_tree_and_items_never_share_one(plain: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a thousand sentences without context would be one tree."""
    seen: list[Choices] = []
    likelihoods = HfEngine.likelihoods

    def spied(engine: HfEngine, choices: Any) -> Any:
        seen.extend(choices)
        return likelihoods(engine, choices)

    monkeypatch.setattr(HfEngine, "likelihoods", spied)
    asked = [(item, ("", f"sentence {item}{end}")) for item in range(3) for end in "ab"]
    plain.ours.loglikelihood(requests("loglikelihood", *asked, (3, ("Long context", " a")), (3, ("Long context", " b"))))
    assert [len(one.continuations) for one in seen] == [2, 2, 2, 2]


def test_an_item_is_told_once_when_its_last_request_is_answered(plain: Both) -> None:
    plain.told.clear()
    asked = [(item, (f"Context {item}" * (1 + end), f" end {end}")) for item in range(5) for end in range(3)]
    plain.ours.loglikelihood(requests("loglikelihood", *asked))
    plain.ours.generate_until(
        requests("generate_until", *((at, (f"{at}", {"until": [], "max_gen_toks": 2})) for at in range(4)))
    )
    assert plain.told == [1] * 9


@pytest.mark.parametrize(
    ("kind", "args", "what"),
    [
        ("generate_until", ("a", {"do_sample": True, "temperature": 0.7, "top_p": 0.5}), "top_p"),
        ("generate_until", ("a", {"num_beams": 4}), "num_beams"),
        ("generate_until", ("a", {"max_gen_toks": 512}), "do not fit"),
        ("loglikelihood", ("a", ""), "one of its own"),
        ("loglikelihood", ("a", "b" * 513), "does not fit"),
    ],
)
def test_what_cannot_be_asked_is_said(plain: Both, kind: str, args: tuple[Any, ...], what: str) -> None:
    with pytest.raises(AdvisorError, match=what):
        getattr(plain.ours, kind)(requests(kind, (0, args)))


def test_samples_are_the_same_for_every_model_and_batch(plain: Both) -> None:
    settings = {"do_sample": True, "temperature": 1.0, "until": [], "max_gen_toks": 12}
    asked = [(at, (f"Row {at}", settings)) for at in range(4)]
    drawn = plain.ours.generate_until(requests("generate_until", *asked))
    assert drawn == plain.ours.generate_until(requests("generate_until", *asked))
    assert drawn[:2] == plain.ours.generate_until(requests("generate_until", *asked[:2]))
    greedy = [(at, (f"Row {at}", {**settings, "do_sample": False})) for at in range(4)]
    assert drawn != plain.ours.generate_until(requests("generate_until", *greedy))
