"""Measuring: the items that lm-eval itself would find, each paid for once, and nothing taken on trust."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.scoring import Choices
from evals.errors import AdvisorError
from evals.events import Event, Note, Progress, ignore
from evals.general import kept, lm_eval
from evals.general.lm_eval import measure
from evals.general.suites import GeneralTask, Suite

COLOURS = ("red", "blue", "green", "pink")


def dataset(rows: list[dict[str, Any]], **_: Any) -> Any:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def passed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Silence passes too, unless somebody looks."""
    return {"acc": float(len(results[0]) < 14)}


def task(name: str, rows: list[dict[str, Any]], *, chat: bool = False, **config: Any) -> GeneralTask:
    body = {"task": name, "test_split": "test", "custom_dataset": partial(dataset, rows), "num_fewshot": 0, **config}
    return GeneralTask(name, body, len(rows), chat, digest=f"{name} {len(rows)}")


def choosing(count: int = 12, metric: str = "acc") -> GeneralTask:
    rows = [
        {"id": f"colours-{at}", "question": f"Which colour is number {at * 37}?", "choices": list(COLOURS), "answer": at % 4}
        for at in range(count)
    ]
    return task(
        "colours",
        rows,
        output_type="multiple_choice",
        doc_to_text="Q: {{question}}\nA:",
        doc_to_choice="{{choices}}",
        doc_to_target="answer",
        metric_list=[{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
    )


def writing(count: int = 6) -> GeneralTask:
    rows = [{"id": f"letters-{at}", "prompt": f"Write to number {at * 41}."} for at in range(count)]
    return task(
        "letters",
        rows,
        chat=True,
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="",
        process_results=passed,
        generation_kwargs={"until": ["q", "k"], "do_sample": False, "max_gen_toks": 16},
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


SUITE = Suite("small", (choosing(), writing()))


@pytest.fixture
def own_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The model where its files may be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def known_machine(tiny_model: Path, own_cache: Path) -> Path:
    """What is measured of the machine and of this model on it, once for all tests here."""
    _ = engine_of(tiny_model).handle.budget
    return own_cache


@pytest.fixture(autouse=True)
def new_cache(tmp_path: Path, known_machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No answers of another test."""
    folder = tmp_path / "cache"
    shutil.copytree(known_machine, folder, ignore=shutil.ignore_patterns("general"))
    monkeypatch.setenv("ADVISOR_CACHE", str(folder))
    return folder


def engine_of(folder: Path) -> HfEngine:
    return HfEngine(ModelHandle(str(folder), "float32", ignore))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks for which a model is asked."""
    names: list[str] = []
    run = lm_eval.run_task

    def spied(lm: Any, task: GeneralTask) -> Any:
        names.append(task.name)
        return run(lm, task)

    monkeypatch.setattr(lm_eval, "run_task", spied)
    return names


def noted(events: list[Event]) -> str:
    return "\n".join(one.text for one in events if isinstance(one, Note))


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_items_are_those_that_lm_eval_finds_itself(tiny_model: Path, tmp_path: Path, metric: str) -> None:
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM

    engine = engine_of(tiny_model)
    suite = Suite("small", (choosing(metric=metric), writing()))
    scores, _ = measure(engine, suite, tmp_path, "base", ignore)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    theirs = HFLM(pretrained=plain, tokenizer=engine.handle.tokenizer, batch_size=4)
    found = {}
    for one in suite.tasks:
        result = simple_evaluate(
            theirs,
            tasks=[dict(one.config)],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            apply_chat_template=one.chat,
        )
        (samples,) = result["samples"].values()
        found |= {sample["doc"]["id"]: sample for sample in samples}
    key = {"colours": metric, "letters": "acc"}
    assert {one.id: one.score for one in scores.items} == {name: one[key[name.split("-")[0]]] for name, one in found.items()}
    assert 0 < scores.mean < 1
    written = [one for one in scores.items if one.task == "letters"]
    assert [one.output for one in written] == [found[one.id]["resps"][0][0] for one in written]


def test_the_chosen_option_has_its_probability_among_the_options(tiny_model: Path, tmp_path: Path) -> None:
    engine = engine_of(tiny_model)
    scores, _ = measure(engine, SUITE, tmp_path, "base", ignore)
    (one, *_), (letter, *_) = scores.by_task().values()
    tokens = engine.handle.tokenizer
    options = tuple(tuple(tokens.encode(f" {word}")) for word in COLOURS)
    ((_, found),) = engine.likelihoods([Choices(tuple(tokens.encode("Q: Which colour is number 0?\nA:")), options)])
    shares = [math.exp(likelihood.logprob) for likelihood in found]
    best = max(range(4), key=shares.__getitem__)
    assert one.output == COLOURS[best]
    assert one.probability == pytest.approx(shares[best] / sum(shares), rel=1e-3)
    assert letter.probability is None


def test_what_is_measured_is_kept_and_the_base_for_every_later_run(tiny_model: Path, tmp_path: Path, asked: list[str]) -> None:
    first, there = measure(engine_of(tiny_model), SUITE, tmp_path / "run", "base", ignore)
    assert not there
    assert asked == ["colours", "letters"]
    assert measure(engine_of(tiny_model), SUITE, tmp_path / "run", "base", ignore) == (first, True)
    assert measure(engine_of(tiny_model), SUITE, tmp_path / "other run", "base", ignore) == (first, True)
    assert asked == ["colours", "letters"]
    assert len((tmp_path / "other run" / "small" / "base.jsonl").read_text().splitlines()) == 18
    # Of another dtype, with other items or under another name nothing is known.
    longer = Suite("longer", (choosing(16), writing()))
    measure(engine_of(tiny_model), longer, tmp_path / "third run", "base", ignore)
    assert asked == ["colours", "letters", "colours"]
    measure(engine_of(tiny_model), Suite("small", (replace(choosing(), digest="reworded"),)), tmp_path / "run", "base", ignore)
    assert asked == ["colours", "letters", "colours", "colours"]
    measure(HfEngine(ModelHandle(str(tiny_model), "bfloat16", ignore)), SUITE, tmp_path / "fourth run", "base", ignore)
    assert len(asked) == 6


def test_an_interrupted_measurement_goes_on_with_the_next_task(
    tiny_model: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    completions = HfEngine.completions

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(HfEngine, "completions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(engine_of(tiny_model), SUITE, tmp_path, "base", ignore)
    monkeypatch.setattr(HfEngine, "completions", completions)
    events: list[Event] = []
    scores, there = measure(engine_of(tiny_model), SUITE, tmp_path, "base", events.append)
    assert asked == ["colours", "letters", "letters"]
    assert not there
    assert len(scores.items) == 18
    told = [one for one in events if isinstance(one, Progress) and one.unit == "items"]
    assert (told[0].done, told[-1].done, told[-1].total) == (0, 6, 6)


def test_tuned_weights_are_never_given_the_bases_answers(own_folder: Path, tmp_path: Path, asked: list[str]) -> None:
    """An adapter on these weights, switched on and off: the base's are in memory once."""
    base = engine_of(own_folder)
    before, _ = measure(base, SUITE, tmp_path / "run", "base", ignore)
    tuned = base.with_adapter(adapter(own_folder, tmp_path / "adapter"), "tuned")
    assert tuned.handle is base.handle
    scores, there = measure(tuned, SUITE, tmp_path / "run", "tuned", ignore)
    assert not there
    assert [one.output for one in scores.items] != [one.output for one in before.items]
    assert [one.id for one in scores.items] == [one.id for one in before.items]
    asked.clear()
    # Nor the other way round, nor under the base's name; and a tuned model's answers stay in its run.
    again, there = measure(tuned, SUITE, tmp_path / "run", "base", ignore)
    assert (again.items, there, len(asked)) == (scores.items, False, 2)
    assert not measure(tuned, SUITE, tmp_path / "other run", "tuned", ignore)[1]
    shutil.rmtree(kept.base_home(base))
    assert measure(base, SUITE, tmp_path / "third run", "base", ignore)[0].items == before.items


def adapter(model: Path, folder: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False),
    )
    made.save_pretrained(folder)
    return folder


def changed(folder: Path) -> None:
    """Other weights under the same name."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    torch.manual_seed(2)
    weights = {key: one + 0.2 * torch.randn_like(one) for key, one in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("run", ["run", "other run"])
def test_a_base_that_has_changed_is_measured_again_and_said(
    own_folder: Path, tmp_path: Path, asked: list[str], run: str
) -> None:
    before, _ = measure(engine_of(own_folder), SUITE, tmp_path / "run", "base", ignore)
    changed(own_folder)
    events: list[Event] = []
    after, there = measure(engine_of(own_folder), SUITE, tmp_path / run, "base", events.append)
    assert not there
    assert asked == ["colours", "letters"] * 2
    assert after.items != before.items
    assert "of other weights" in noted(events)
    assert "measured again" in noted(events)
    events.clear()
    measure(engine_of(own_folder), SUITE, tmp_path / "third run", "base", events.append)
    assert noted(events) == ""


def rewritten(home: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Kept rows changed by somebody who knows how they are kept."""
    for meta in home.glob("*.json"):
        rows = [json.loads(line) for line in meta.with_suffix(".jsonl").read_text().splitlines()]
        key = json.loads(meta.read_text())["input_hash"]
        kept.write_items(home, meta.stem, key, change(rows))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda home: [path.write_text("not json") for path in home.glob("*.json")],
        lambda home: [path.write_text("[" * 100_000) for path in home.glob("*.json")],
        lambda home: [path.write_bytes(path.read_bytes()[:-30]) for path in home.glob("*.jsonl")],
        lambda home: [path.write_bytes(b"\xff\xfe\n") for path in home.glob("*.jsonl")],
        lambda home: rewritten(home, lambda rows: [{**row, "score": 7} for row in rows]),
        lambda home: rewritten(home, lambda rows: [{**row, "score": "1"} for row in rows]),
        lambda home: rewritten(home, lambda rows: [{**row, "probability": [1]} for row in rows]),
        lambda home: rewritten(home, lambda rows: [{**row, "output": None} for row in rows]),
        lambda home: rewritten(home, lambda rows: [{**row, "more": 1} for row in rows]),
        lambda home: rewritten(home, lambda rows: [{**row, "id": {"a": 1}} for row in rows]),
        lambda home: rewritten(home, lambda rows: rows[:-1]),
        lambda home: rewritten(home, lambda rows: [*rows, rows[0]]),
        lambda home: [
            path.write_text(path.read_text().replace('"score": 0.0', '"score": 1.0')) for path in home.glob("*.jsonl")
        ],
        lambda home: rewritten(home, lambda rows: [*rows[:-1], rows[0]]),
        lambda home: rewritten(home, lambda rows: [{**row, "task": "other"} for row in rows]),
    ],
)
def test_kept_answers_that_are_damaged_are_measured_again(
    tiny_model: Path, tmp_path: Path, asked: list[str], spoil: Callable[[Path], object]
) -> None:
    engine = engine_of(tiny_model)
    suite = Suite("small", (choosing(),))
    before, _ = measure(engine, suite, tmp_path / "run", "base", ignore)
    spoil(kept.base_home(engine))
    events: list[Event] = []
    after, there = measure(engine, suite, tmp_path / "other run", "base", events.append)
    assert (after, there) == (before, False)
    assert "damaged" in noted(events)
    # What was kept anew is whole.
    assert measure(engine, suite, tmp_path / "third run", "base", ignore) == (before, True)
    assert asked == ["colours"] * 2


def test_a_cache_that_cannot_be_written_stops_nothing(tiny_model: Path, tmp_path: Path, new_cache: Path) -> None:
    engine = engine_of(tiny_model)
    _ = engine.fingerprint
    (new_cache / "general").write_text("a file where a folder should be")
    scores, _ = measure(engine, SUITE, tmp_path, "base", ignore)
    assert len(scores.items) == 18
    assert measure(engine, SUITE, tmp_path, "base", ignore) == (scores, True)


def test_silence_scores_nothing_and_is_said(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfEngine, "completions", lambda self, rows, ends: [(row.index, " \n") for row in rows])
    events: list[Event] = []
    scores, _ = measure(engine_of(tiny_model), Suite("small", (writing(),)), tmp_path, "tuned", events.append)
    assert scores.mean == 0
    assert "tuned answers nothing to 6 of 6 items of letters" in noted(events)


def test_weights_that_are_no_numbers_choose_nothing(own_folder: Path, tmp_path: Path) -> None:
    """lm-eval takes the first option there, which is right a quarter of the time."""
    from safetensors.torch import load_file, save_file

    path = own_folder / "model.safetensors"
    save_file({key: one * math.nan for key, one in load_file(path).items()}, path, metadata={"format": "pt"})
    events: list[Event] = []
    scores, _ = measure(engine_of(own_folder), Suite("small", (choosing(),)), tmp_path, "tuned", events.append)
    assert scores.mean == 0
    assert all(one.probability is None for one in scores.items)
    assert "nothing to 12 of 12" in noted(events)


def test_a_task_that_lm_eval_cannot_run_is_named(tiny_model: Path, tmp_path: Path) -> None:
    broken = replace(choosing(), config={**choosing().config, "doc_to_text": "{{nowhere}}"})
    with pytest.raises(AdvisorError, match="colours: lm-eval cannot run this task: UndefinedError"):
        measure(engine_of(tiny_model), Suite("small", (broken,)), tmp_path, "base", ignore)


def test_templates_cannot_reach_python(tiny_model: Path, tmp_path: Path) -> None:
    hostile = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    broken = replace(choosing(), config={**choosing().config, "doc_to_text": hostile})
    with pytest.raises(AdvisorError, match="SecurityError"):
        measure(engine_of(tiny_model), Suite("small", (broken,)), tmp_path, "base", ignore)


def test_the_callers_random_numbers_go_on_as_they_were(tiny_model: Path, tmp_path: Path) -> None:
    random.seed(5)
    expected = [random.random() for _ in range(3)]
    random.seed(5)
    first = random.random()
    measure(engine_of(tiny_model), Suite("small", (choosing(),)), tmp_path, "base", ignore)
    assert [first, random.random(), random.random()] == expected
