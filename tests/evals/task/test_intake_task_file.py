"""What `task.yaml` may say: everything wrong with it is found at once, with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.errors import AdvisorError, Problem, ProblemsError
from evals.task.load import Task, find_task, load_task
from evals.task.spec import read_spec

MakeTask = Callable[..., Path]
LEAST = "data: {train: train.jsonl}\nmodel: {model_name_or_path: x}\n"


def problems_of(folder: Path) -> list[Problem]:
    with pytest.raises(ProblemsError) as caught:
        load_task(folder)
    return list(caught.value.problems)


def spec_problems(tmp_path: Path, text: str | bytes) -> list[Problem]:
    file = tmp_path / "task.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ProblemsError) as caught:
        read_spec(file)
    return list(caught.value.problems)


def test_a_valid_task_loads_with_what_was_inferred(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(tmp_path / "t"))
    assert [len(task.train), len(task.dev), len(task.test)] == [24, 8, 8]
    assert (task.output_type, task.metric, task.labels) == ("label", "accuracy", ("blue", "green", "pink", "red"))
    assert "train: 24 rows of train.jsonl, format input/output" in task.said


def test_no_task_file_says_what_one_needs(tmp_path: Path) -> None:
    with pytest.raises(AdvisorError, match="there is no task file") as caught:
        load_task(tmp_path)
    assert "only `data: {train: FILE}`" in caught.value.do


def test_an_unknown_task_names_the_examples(tmp_path: Path) -> None:
    (tmp_path / "triage").mkdir()
    (tmp_path / "triage" / "task.yaml").write_text(LEAST)
    assert find_task("triage", tmp_path) == tmp_path / "triage"
    with pytest.raises(AdvisorError) as caught:
        find_task("no-such-task", tmp_path)
    assert "triage" in caught.value.do


def test_only_data_and_model_are_required(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(LEAST)
    assert read_spec(tmp_path / "task.yaml").gate.min_gain == 0.03
    (missing,) = spec_problems(tmp_path, "data: {train: x}\n")
    assert (missing.key, missing.message) == ("model", "this key is required")


@pytest.mark.parametrize(
    ("text", "line", "key", "meant"),
    [
        (LEAST + "metrc: accuracy\n", 3, "metrc", "'metric'"),
        (LEAST + "gate:\n  min_gain: 0.1\n  max_forgeting: 0.1\n", 5, "gate.max_forgeting", "'max_forgetting'"),
        (LEAST + "output:\n  shema: x.json\n", 4, "output.shema", "'schema'"),
        (LEAST + "prices:\n  gpu_hours: 2\n", 4, "prices.gpu_hours", "'gpu_hour'"),
        (LEAST + "traffic: {requests_per_month: 5, month: 2}\n", 3, "traffic.month", "'months'"),
    ],
)
def test_an_unknown_key_has_its_line_and_the_nearest_word(tmp_path: Path, text: str, line: int, key: str, meant: str) -> None:
    (problem,) = spec_problems(tmp_path, text)
    assert (problem.line, problem.key) == (line, key)
    assert f"did you mean {meant}" in problem.message


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("engine: endpoint", "`engine: endpoint` needs `base_url:`"),
        ("base_url: 'http://localhost:1/v1', context_length: 5", "base_url, context_length: only with `engine: endpoint`"),
        ("engine: endpoint, base_url: 'http://localhost:1', dtype: auto", "dtype: only with `engine: hf`"),
        ("engine: endpoint, base_url: 'http://me:hidden@host/v1'", "must not hold a user or password"),
        ("engine: endpoint, base_url: 'http://host/v1?key=hidden'", "must not hold a query string"),
        ("engine: endpoint, base_url: localhost", "must be an address such as http://localhost:8000/v1"),
        ("engine: endpoint, base_url: 'http://host', api_key_env: sk-hidden", "the name of an environment variable"),
    ],
)
def test_keys_of_the_wrong_engine_and_secrets_are_refused(tmp_path: Path, model: str, said: str) -> None:
    (problem,) = spec_problems(tmp_path, f"data: {{train: x}}\nmodel: {{model_name_or_path: m, {model}}}\n")
    assert problem.line == 2
    assert said in problem.message
    assert "hidden" not in str(problem)


@pytest.mark.parametrize(
    ("rag", "key", "said"),
    [
        ("{rerank: x}", "rag.rerank", "did you mean 'reranker'"),
        ("{reranker: ''}", "rag.reranker", "at least 1 character"),
        ("{rewrite: 1}", "rag.rewrite", "must be true or false"),
        ("{qdrant: {collection: c}}", "rag.qdrant.url", "this key is required"),
        ("{qdrant: {url: 'http://h'}}", "rag.qdrant.collection", "this key is required"),
        ("{qdrant: {url: 'http://h', collection: c, tmeout: 5}}", "rag.qdrant.tmeout", "did you mean 'timeout'"),
        ("{qdrant: {url: 'http://h', collection: c, timeout: 0}}", "rag.qdrant.timeout", "greater than or equal to 1"),
        ("{qdrant: {url: 'http://h', collection: c, timeout: yes}}", "rag.qdrant.timeout", "must be a number"),
        ("{qdrant: {url: 'http://h', collection: ../c}}", "rag.qdrant.collection", "no name that a collection can have"),
        ("{qdrant: {url: 'http://h', collection: '..'}}", "rag.qdrant.collection", "no name that a collection can have"),
        ("{qdrant: {url: h, collection: c}}", "rag.qdrant.url", "url must be an address such as http://localhost:6333"),
        ("{qdrant: {url: 'ftp://h', collection: c}}", "rag.qdrant.url", "url must be an address such as"),
        ("{qdrant: {url: 'http://me:hidden@h', collection: c}}", "rag.qdrant.url", "url must not hold a user or password"),
        ("{qdrant: {url: 'http://h?api-key=hidden', collection: c}}", "rag.qdrant.url", "must not hold a query string"),
        (
            "{qdrant: {url: 'http://h', collection: c, api_key_env: hidden}}",
            "rag.qdrant.api_key_env",
            "name of an environment variable",
        ),
    ],
)
def test_what_retrieval_may_not_say(tmp_path: Path, rag: str, key: str, said: str) -> None:
    (problem,) = spec_problems(tmp_path, f"{LEAST}rag: {rag}\n")
    assert (problem.line, problem.key) == (3, key)
    assert said in problem.message
    assert "hidden" not in str(problem)


def test_a_database_needs_no_documents_and_how_it_is_reached_is_no_part_of_the_run(make_task: MakeTask, tmp_path: Path) -> None:
    plain = load_task(make_task(tmp_path / "plain"))
    assert (plain.spec.rag.reranker, plain.spec.rag.rewrite, plain.spec.rag.qdrant) == (None, False, None)
    base = {"url": "http://h:6333/", "collection": "c"}

    def loaded(**more: Any) -> Task:
        return load_task(make_task(tmp_path / f"t{len(list(tmp_path.iterdir()))}", rag={"qdrant": {**base, **more}}))

    task = loaded()
    assert task.spec.rag.qdrant is not None
    assert (task.spec.rag.qdrant.url, task.spec.rag.qdrant.text) == ("http://h:6333", "text")
    assert loaded(api_key_env="MINE", timeout=5).hash() == task.hash()
    hashes = [one.hash() for one in (plain, task, loaded(collection="d"), loaded(text="body"), loaded(url="http://i"))]
    assert len(set(hashes)) == len(hashes)


def test_a_served_model_has_no_machine_hours(tmp_path: Path) -> None:
    served = "data: {train: x}\nmodel: {model_name_or_path: m, engine: endpoint, base_url: 'http://h/v1'}\n"
    (problem,) = spec_problems(tmp_path, served + "prices: {gpu_hour: 2}\n")
    assert "price its tokens" in problem.message
    (tmp_path / "task.yaml").write_text(served + "prices: {input_per_million: 2}\n")
    assert read_spec(tmp_path / "task.yaml").model.max_concurrency == 8


def test_a_duplicate_key_is_refused_at_any_depth(tmp_path: Path) -> None:
    top, deep = spec_problems(tmp_path, "data: {train: a, train: b}\nmodel: {model_name_or_path: x}\nseed: 1\nseed: 2\n")
    assert {(one.line, one.key) for one in (top, deep)} == {(1, "train"), (4, "seed")}
    assert all("twice" in one.message for one in (top, deep))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- data\n- model\n", "a mapping of keys"),
        ("just words\n", "a mapping of keys"),
        ("", "a mapping of keys"),
        ("data: [unclosed\n", "not valid YAML"),
        ("data: " + "[" * 3000, "not valid YAML"),
        ("data: " + "{a: " * 3000, "not valid YAML"),
        (b"name: caf\xe9\n", "not valid YAML"),
        (b"name: \x00\n", "not valid YAML"),
        ("name: 2020-13-45\n", "not valid YAML"),
        ("? [a, b]\n: 1\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        (LEAST + "7: x\n", ""),
    ],
)
def test_what_is_no_task_file_is_a_problem_and_never_a_crash(tmp_path: Path, text: str | bytes, says: str) -> None:
    problems = spec_problems(tmp_path, text)
    assert problems
    assert all(says in one.message for one in problems)


def test_an_alias_bomb_is_refused_before_it_is_built(tmp_path: Path) -> None:
    layers = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (problem,) = spec_problems(tmp_path, "\n".join(["a0: &a0 [x, x, x]", *layers, LEAST]))
    assert "aliases" in problem.message


@pytest.mark.parametrize(
    "override",
    [
        {"target": 1.5},
        {"target": float("nan")},
        {"seed": -1},
        {"name": "a/b"},
        {"gate": {"max_forgetting": 0}},
        {"prices": {"gpu_hour": -1}},
        {"traffic": {"requests_per_month": 0}},
        {"schema_version": 2},
        {"output": {"labels": [True, False]}},
    ],
)
def test_values_out_of_range_are_refused(make_task: MakeTask, tmp_path: Path, override: dict[str, Any]) -> None:
    (problem, *_) = problems_of(make_task(tmp_path / "t", **override))
    assert problem.key.split(".")[0] == next(iter(override))
    assert problem.line > 0


def test_an_unknown_metric_is_refused_with_the_nearest_one(make_task: MakeTask, tmp_path: Path) -> None:
    (problem,) = problems_of(make_task(tmp_path / "t", metric=["acuracy"]))
    assert "did you mean 'accuracy'" in problem.message


def test_a_limit_on_cost_needs_prices(make_task: MakeTask, tmp_path: Path) -> None:
    (problem,) = problems_of(make_task(tmp_path / "t", gate={"max_cost_per_1k": 0.5}))
    assert problem.key == "gate.max_cost_per_1k"
    load_task(make_task(tmp_path / "u", gate={"max_cost_per_1k": 0.5}, prices={"gpu_hour": 2.0}))


def test_the_instruction_may_be_a_file(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "t", instruction="instruction.md", files={"instruction.md": "Name it.\n"})
    assert load_task(folder).instruction == "Name it."
    (folder / "instruction.md").unlink()
    (problem,) = problems_of(folder)
    assert problem.key == "instruction"


def test_a_models_path_is_relative_to_the_task_file(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(tmp_path / "t", files={"mine/config.json": "{}", "smollm2-135m-instruct/config.json": "{}"}))
    assert task.located("mine") == str(tmp_path / "t" / "mine")
    assert task.located("some/hub-name") == "some/hub-name"
    assert task.located("smollm2-135m-instruct") == "smollm2-135m-instruct"


def test_several_problems_are_reported_at_once_each_with_its_place(make_task: MakeTask, tmp_path: Path) -> None:
    labels = {"type": "label", "labels": ["red", "blue", "green", "pink"]}
    folder = make_task(tmp_path / "t", instruction="gone.md", gate={"max_cost_per_1k": 1.0}, output=labels)
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"input": "no output"}\n{broken\n')
    with (folder / "dev.jsonl").open("a") as file:
        file.write('{"input": "Item 1", "output": "violet"}\n')
    (folder / "test.jsonl").unlink()
    found = {(Path(one.file).name, one.line) for one in problems_of(folder)}
    assert found >= {
        ("train.jsonl", 25),
        ("train.jsonl", 26),
        ("dev.jsonl", 9),
        ("test.jsonl", 0),
        ("gone.md", 0),
        ("task.yaml", 0),
    }


def test_the_message_shows_each_problem_as_file_and_line(make_task: MakeTask, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "t")
    (folder / "train.jsonl").write_text("{broken\n" * 50)
    with pytest.raises(ProblemsError) as caught:
        load_task(folder)
    text = str(caught.value)
    assert f"{folder / 'train.jsonl'}:1: broken JSON" in text
    assert "… and " in text
    assert "advisor check" in text
