"""Suites by name: what a name finds, the same items for every model, and folders of task files as hostile input."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError, ProblemsError
from evals.events import ignore
from evals.general import named, suites
from evals.general.halves import half
from evals.general.lm_eval import measure
from evals.general.named import suite_of
from evals.task.spec import read_spec

ROWS = 40


def config(**changed: Any) -> dict[str, Any]:
    body = {
        "task": "numbers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "numbers.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1.0},
        **changed,
    }
    return {key: one for key, one in body.items() if one is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One task of forty questions with two, three or four choices."""
    home = tmp_path / "mine"
    home.mkdir()
    rows = [
        {
            "question": f"What is {at} and {at}?",
            "choices": [f"{2 * at}", f"{at} hundred", f"{at}", "no number"][: 2 + at % 3],
            "answer": 0,
        }
        for at in range(ROWS)
    ]
    (home / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(home, config())
    return home


def write(home: Path, body: Mapping[str, Any], name: str = "numbers.yaml") -> None:
    (home / name).write_text(yaml.safe_dump(dict(body), sort_keys=False))


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), start=1) if text in line)


@pytest.fixture
def engine(tiny_model: Path) -> HfEngine:
    return HfEngine(ModelHandle(str(tiny_model), "float32", ignore))


def test_built_in_suites_by_name() -> None:
    """Both can be asked together: their tasks have names of their own."""
    assert suite_of(("quick",)).name == "quick"
    both = suite_of(["quick", "standard"])
    apart = (*suites.quick_suite().tasks, *suites.standard_suite().tasks)
    assert [one.digest for one in both.tasks] == [one.digest for one in apart]
    assert len({one.name for one in both.tasks}) == len(apart)


def test_a_folder_of_task_files_is_a_suite(folder: Path, engine: HfEngine, tmp_path: Path) -> None:
    (one,) = suite_of("mine", beside=folder.parent).tasks
    assert (one.name, one.items, one.chat, one.pooled) == ("numbers", ROWS, False, True)
    assert one.chance == pytest.approx(sum(1 / (2 + at % 3) for at in range(ROWS)) / ROWS)
    scores, _ = measure(engine, suite_of(str(folder)), tmp_path / "run", "base", ignore)
    assert {item.id for item in scores.items} == {f"numbers-{at}" for at in range(ROWS)}
    assert all(item.task == "numbers" and item.probability is not None for item in scores.items)


def test_a_folders_items_are_scored_as_lm_eval_scores_them(folder: Path, engine: HfEngine, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM

    files = {"test": str(folder / "numbers.jsonl")}
    body = config(dataset_kwargs={"data_files": files, "cache_dir": str(tmp_path / "data")})
    theirs = HFLM(pretrained=AutoModelForCausalLM.from_pretrained(engine.handle.folder), tokenizer=engine.handle.tokenizer)
    result = simple_evaluate(theirs, tasks=[body], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0)
    scores, _ = measure(engine, suite_of(str(folder)), tmp_path / "run", "base", ignore)
    expected = {f"numbers-{one['doc_id']}": one["acc_norm"] for one in result["samples"]["numbers"]}
    assert {one.id: one.score for one in scores.items} == expected
    # What it says that the model chose is what was scored.
    right = {f"numbers-{one['doc_id']}": one["doc"]["choices"][0] for one in result["samples"]["numbers"]}
    assert all((one.output == right[one.id]) == bool(one.score) for one in scores.items)
    assert expected != {f"numbers-{one['doc_id']}": one["acc"] for one in result["samples"]["numbers"]}


def test_a_limit_draws_the_same_items_for_every_model(folder: Path, engine: HfEngine, tmp_path: Path) -> None:
    first, again, other = (suite_of(str(folder), limit=10, seed=seed) for seed in (3, 3, 4))
    assert first.tasks[0].digest == again.tasks[0].digest != other.tasks[0].digest
    runs = [measure(engine, suite, tmp_path / str(at), "base", ignore)[0] for at, suite in enumerate((first, other))]
    ids = [[one.id for one in scores.items] for scores in runs]
    assert len(ids[0]) == len(set(ids[0])) == 10
    assert ids[0] != ids[1]
    # An item is the same one, whichever others are drawn.
    whole = {one.id: one for one in measure(engine, suite_of(str(folder)), tmp_path / "whole", "base", ignore)[0].items}
    assert [(one.score, one.output) for one in runs[0].items] == [(whole[name].score, whole[name].output) for name in ids[0]]


def test_halves_of_a_named_task_are_its_items_once(folder: Path, engine: HfEngine, tmp_path: Path) -> None:
    suite = suite_of(str(folder))
    halves = [measure(engine, half(suite, which), tmp_path / "run", "base", ignore)[0].items for which in ("a", "b")]
    whole, _ = measure(engine, suite, tmp_path / "run", "base", ignore)
    assert 10 < len(halves[0]) < 30
    # (What is summed in another batch differs in the last bits on some processors.)
    found = sorted((one.id, one.score, one.output) for one in (*halves[0], *halves[1]))
    assert found == sorted((one.id, one.score, one.output) for one in whole.items)


def test_what_is_asked_is_known_by_the_items_id(folder: Path) -> None:
    (one,) = suite_of(str(folder), limit=5).tasks
    asked = one.asked()  # type: ignore[attr-defined]
    assert len(asked) == 5
    assert all(text == f"Q: What is {at} and {at}?\nA:" for name, text in asked.items() for at in [name.split("-")[1]])
    write(folder, config(doc_to_text=""))
    (one,) = suite_of(str(folder)).tasks
    assert one.asked()["numbers-1"] == "2\n1 hundred\n1"  # type: ignore[attr-defined]


def test_what_a_suite_holds_is_in_its_digest_and_where_it_lies_is_not(folder: Path, tmp_path: Path) -> None:
    (before,) = suite_of(str(folder)).tasks
    moved = folder.rename(tmp_path / "elsewhere")
    (same,) = suite_of(str(moved)).tasks
    assert same.digest == before.digest
    rows = (moved / "numbers.jsonl").read_text()
    (moved / "numbers.jsonl").write_text(rows.replace("What is 7 and 7", "What is 8 and 7"))
    (other,) = suite_of(str(moved)).tasks
    # Of the Hub's data there is no file to hash.
    of_hub = [named._task("n", dict(one.tasks), None, 0, chat=False).digest for one in (same, other)]  # type: ignore[attr-defined]
    assert of_hub[0] != of_hub[1]
    (moved / "numbers.jsonl").write_text(rows)
    write(moved, config(doc_to_text="{{question}}"))
    assert len({before.digest, other.digest, suite_of(str(moved)).tasks[0].digest}) == 3


def test_metadata_says_what_is_pooled_and_what_guessing_scores(folder: Path) -> None:
    write(folder, config(metadata={"version": 1.0, "pooled": False, "chance": 0.4}))
    (one,) = suite_of(str(folder)).tasks
    assert (one.pooled, one.chance) == (False, 0.4)


def test_written_answers_are_read_by_the_tasks_own_filter(folder: Path, engine: HfEngine, tmp_path: Path) -> None:
    write(
        folder,
        config(
            output_type="generate_until",
            doc_to_choice=None,
            doc_to_target="{{choices[0]}}",
            generation_kwargs={"until": ["\n"], "do_sample": False, "max_gen_toks": 8},
            filter_list=[
                {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(.)"}, {"function": "take_first"}]}
            ],
            metric_list=[{"metric": "exact_match"}],
            apply_chat_template=True,
        ),
    )
    (one,) = suite_of(str(folder), limit=6).tasks
    assert one.chat
    assert one.chance == 0
    scores, _ = measure(engine, suite_of(str(folder), limit=6), tmp_path / "run", "base", ignore)
    assert all(len(item.output) > 1 and item.probability is None for item in scores.items)


def test_includes_stay_in_the_folder_and_own_keys_win(folder: Path) -> None:
    (folder / "numbers.yaml").unlink()
    write(folder, config(task=None, description="shared"), "_shared.yaml")
    write(folder, {"include": "_shared.yaml", "task": "one", "doc_to_text": "{{question}}"}, "one.yaml")
    (one,) = suite_of(str(folder)).tasks
    (task,) = one.tasks.values()
    assert (task.config.doc_to_text, task.config.description) == ("{{question}}", "shared")
    write(folder.parent, config(task=None), "outside.yaml")
    for include in ("../outside.yaml", str(folder.parent / "outside.yaml"), "one.yaml", "nowhere.yaml"):
        write(folder, {"include": include, "task": "one"}, "one.yaml")
        with pytest.raises(ProblemsError, match=r"one.yaml:1: include: .* is no other file of this folder"):
            suite_of(str(folder))


def test_all_that_is_wrong_with_a_folder_is_told_at_once_with_file_and_line(folder: Path) -> None:
    (folder / "broken.yaml").write_text("task: broken\ndoc_to_text: [a\nother: b\n")
    (folder / "list.yaml").write_text("- task: a\n")
    write(folder, config(task="typo", doc_to_txt="{{question}}"), "typo.yaml")
    write(folder, config(task="gone", dataset_kwargs={"data_files": "gone.jsonl"}), "gone.yaml")
    with pytest.raises(ProblemsError) as caught:
        suite_of(str(folder))
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "broken.yaml:3: not valid YAML" in text
    assert "list.yaml:1: a task file is a mapping" in text
    assert f"typo.yaml:{line_of(folder / 'typo.yaml', 'doc_to_txt')}: doc_to_txt: unknown key" in text
    assert "did you mean 'doc_to_text'?" in text
    assert "gone.yaml: dataset_kwargs.data_files: 'gone.jsonl' is no file beside this one" in text


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[Path]:
    """A file that code of a folder would make, were it run."""
    mark = tmp_path / "was here"
    before = set(sys.modules)
    yield mark
    for name in set(sys.modules) - before:
        if str(tmp_path) in name:
            del sys.modules[name]


def test_code_of_a_folder_is_run_only_where_it_is_trusted(folder: Path, marked: Path) -> None:
    (folder / "code.py").write_text(
        f"from pathlib import Path\nPath({str(marked)!r}).touch()\ndef text(doc):\n    return doc['question'].upper()\n"
    )
    path = folder / "numbers.yaml"
    path.write_text(path.read_text().replace("doc_to_text: 'Q: {{question}}\n\n  A:'", "doc_to_text: !function code.text"))
    with pytest.raises(ProblemsError) as caught:
        suite_of(str(folder))
    assert f"numbers.yaml:{line_of(path, '!function')}: the tag !function code.text runs code" in str(caught.value)
    assert "trust_task_code: true" in str(caught.value)
    assert not marked.exists()
    (one,) = suite_of(str(folder), trust_task_code=True).tasks
    (task,) = one.tasks.values()
    assert task.doc_to_text(task.eval_docs[0]) == "WHAT IS 0 AND 0?"
    assert marked.exists()


class Mark:
    """Unpickled, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"dataset_path": "pandas", "dataset_kwargs": {"data_files": {"test": "rows.pkl"}}}, "dataset_path: must be json"),
        ({"dataset_path": "./code"}, "dataset_path: must be json"),
        ({"dataset_kwargs": {"data_files": "https://example.org/rows.jsonl"}}, "no file beside this one"),
        ({"dataset_kwargs": {"data_files": "numbers.jsonl", "trust_remote_code": True}}, "may hold data_files only"),
        ({"metric_list": [{"metric": "someone/metric"}]}, "metric_list: each must be"),
        ({"metric_list": [{"metric": "exact_match", "hf_evaluate": True}]}, "metric_list: each must be"),
        ({"use_prompt": "promptsource:all"}, "use_prompt: unknown key"),
        ({"unsafe_code": True}, "unsafe_code: unknown key"),
        ({"output_type": "loglikelihood_rolling"}, "output_type: must be one of"),
        ({"task": ["a", "b"], "group": "c"}, "there is no lm-eval task in this folder"),
    ],
)
def test_what_may_run_code_is_refused(folder: Path, marked: Path, changed: dict[str, Any], what: str) -> None:
    (folder / "rows.pkl").write_bytes(pickle.dumps(Mark(marked)))
    write(folder, config(**changed))
    with pytest.raises(AdvisorError, match=what):
        suite_of(str(folder))
    assert not marked.exists()


def test_aliases_that_lead_into_themselves_end(folder: Path) -> None:
    (folder / "numbers.yaml").write_text("task: numbers\nmetadata: &a\n  b: *a\n")
    with pytest.raises(ProblemsError):
        suite_of(str(folder))


def test_templates_of_a_folder_cannot_reach_python(folder: Path, engine: HfEngine, tmp_path: Path) -> None:
    write(folder, config(doc_to_text="{{ question.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(AdvisorError, match="SecurityError"):
        measure(engine, suite_of(str(folder)), tmp_path / "run", "base", ignore)


def test_a_task_without_the_columns_that_it_names_is_refused_by_name(folder: Path) -> None:
    write(folder, config(doc_to_target="{{rightt}}"))
    with pytest.raises(AdvisorError, match=r"numbers.yaml: lm-eval cannot load this task: UndefinedError"):
        suite_of(str(folder))


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[str]]:
    """lm-eval's index with the hub's names, of which only gsm8k has data here. The list tells who was asked for."""
    asked: list[str] = []
    numbers = suite_of(str(folder)).tasks[0].tasks  # type: ignore[attr-defined]

    def load(names: list[str]) -> dict[str, Any]:
        asked.extend(names)
        if names == ["ifeval"]:
            raise ModuleNotFoundError("No module named 'langdetect'")
        if names != ["gsm8k"]:
            raise ConnectionError("Couldn't reach the Hub")
        return {"tasks": dict(numbers)}

    monkeypatch.setattr(named, "_manager", lambda: SimpleNamespace(all_tasks=[*named.HUB, "lambada"], load=load))
    named._loaded.cache_clear()
    yield asked
    named._loaded.cache_clear()


def test_without_network_the_error_names_what_is_there(index: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "hub_answers", lambda: False)
    with pytest.raises(AdvisorError) as caught:
        suite_of("hub")
    text = str(caught.value)
    assert (
        "suite hub: the data of mmlu, hellaswag, arc_challenge, winogrande, truthfulqa_mc2 are not in the Hub's cache" in text
    )
    assert "ifeval: needs a package that is not installed (No module named 'langdetect')" in text
    assert text.endswith("quick, standard, gsm8k.")
    assert len(index) == len(set(index))  # none was asked for twice
    assert suite_of(["gsm8k"], limit=5).tasks[0].items == 5


def test_with_network_data_that_cannot_be_had_say_why(index: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "hub_answers", lambda: True)
    with pytest.raises(AdvisorError, match="lambada: its data cannot be had: Couldn't reach the Hub"):
        suite_of("lambada")
    assert index[-2:] == ["lambada", "lambada"]  # the cache, then the Hub


def test_a_look_into_the_cache_leaves_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    seen = []

    def look() -> None:
        with named._offline():
            seen.extend([datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE])
            raise ValueError("not there")

    with pytest.raises(ValueError, match="not there"):
        look()
    assert seen == [True, True]
    assert not datasets.config.HF_HUB_OFFLINE
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_the_hub_is_not_asked_where_the_user_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    named.hub_answers.cache_clear()
    assert not named.hub_answers()
    named.hub_answers.cache_clear()


@pytest.mark.usefixtures("index")
def test_a_name_that_is_none_is_compared_with_those_that_are() -> None:
    with pytest.raises(AdvisorError, match=r"did you mean 'hellaswag'\?"):
        suite_of("helaswag")
    with pytest.raises(AdvisorError, match="is empty"):
        suite_of(())


def test_a_benchmark_stands_in_a_suite_once(folder: Path) -> None:
    with pytest.raises(AdvisorError, match="has numbers twice"):
        suite_of([str(folder), f"{folder}/"])


def test_a_suites_name_is_one_part_of_a_path(folder: Path) -> None:
    home = folder.rename(folder.parent / "a: b\u2026")
    assert suite_of([str(home), "quick"]).name == "a__b_+quick"


SPEC = "data: {train: a.jsonl}\nmodel: {model_name_or_path: m}\n"


@pytest.mark.parametrize(
    ("text", "suite", "limit"),
    [
        ("", ("quick",), None),
        ("general: {suite: hub, limit: 40}", ("hub",), 40),
        ("general: {suite: [a/, quick]}", ("a/", "quick"), None),
    ],
)
def test_the_task_file_names_the_suite(tmp_path: Path, text: str, suite: tuple[str, ...], limit: int | None) -> None:
    (tmp_path / "task.yaml").write_text(SPEC + text)
    spec = read_spec(tmp_path / "task.yaml").general
    assert (spec.suite, spec.limit, spec.confirm, spec.trust_task_code) == (suite, limit, "half", False)


@pytest.mark.parametrize(
    "text", ["{suite: []}", "{suite: ''}", "{limit: 0}", "{confirm: other}", "{trust_task_code: 1}", "{suit: quick}"]
)
def test_faults_under_general_are_told_with_their_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "task.yaml").write_text(f"{SPEC}general: {text}")
    with pytest.raises(ProblemsError, match=r"task.yaml:3: general"):
        read_spec(tmp_path / "task.yaml")
