"""`advisor init`: whatever the data look like, a task file that the check accepts, or an error that says what to do."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import advisor
from advisor.cli import init
from advisor.flow.schema import published_schema, schema_text
from advisor.flow.task_yaml import OPTIONAL, SCHEMA_FILE, in_comment, scalar
from evals.errors import AdvisorError, Interrupted, ProblemsError, UsageError
from evals.task.guess import columns_of, guess_columns, guess_output
from evals.task.load import Task, load_task
from evals.task.spec import read_spec
from trainer.recipe import recommended_recipe

TEAMS = ["billing", "delivery", "returns", "other"]
HOSTILE = [
    "it's", 'say "no"', "a: b", "- x", "-", "*alias", "&anchor", "!!python/object:os.system", "{{x}}", "[a", "# c", "a #b", "@x", "`x`",
    "%TAG", "? k", "| b", "> f", "yes", "null", "1e5", "0x1F", "2020-01-01", "<<", "=", "~", "", " lead", "trail ", "a\nb", "tab\there",
    "naïve", "日本語", "🎉", "\u2028", "\x85", "\ufeff", "\x1b[31m", "\x07", "$(rm)", "../x", "a\\b", "12:30:00", "0o7", ".inf", "a" * 300,
]  # fmt: skip


def go(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    init.add_arguments(parser)
    return init.run(parser.parse_args(list(argv)))


def made(folder: Path, *argv: str) -> Task:
    """A task file by flags alone, accepted by the reader of task files."""
    assert go(*argv, "--yes") == 0
    return load_task(folder)


def tickets(count: int = 60) -> list[dict[str, str]]:
    words = ["lamp", "parcel", "invoice", "gate", "kettle", "chair", "door", "window", "carpet", "shelf", "mirror", "candle"]
    return [
        {
            "ticket_id": f"T-{at:03}",
            "created_at": f"2026-{at % 12 + 1:02}-11",
            "customer message": f"The {words[at % 12]} of order {at * 37} and the {words[at // 12]} {at}",
            "team": TEAMS[at % 4],
        }
        for at in range(count)
    ]


def write_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """In the container that the name says."""
    if path.suffix in {".csv", ".tsv"}:
        return write_csv(path, rows, "\t" if path.suffix == ".tsv" else ",")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Typed(io.StringIO):
    """A terminal at which these lines are typed, and then nothing."""

    def isatty(self) -> bool:
        return True


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", Typed("".join(f"{line}\n" for line in lines)))


def question(at: int) -> str:
    return f"What stands on shelf {at} of row {at * 7 % 50}, and who put {at * 13} there?"


def answer(at: int) -> str:
    return f"Box {at * 11} by {at % 9} of {at}"


FORMATS: dict[str, list[dict[str, Any]]] = {
    "input/output": [{"input": question(at), "output": answer(at)} for at in range(30)],
    "messages": [
        {"messages": [{"role": "user", "content": question(at)}, {"role": "assistant", "content": answer(at)}]}
        for at in range(30)
    ],
    "prompt/completion": [{"prompt": question(at), "completion": answer(at)} for at in range(30)],
    "alpaca": [{"instruction": question(at), "input": "", "output": answer(at)} for at in range(30)],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": question(at)}, {"from": "gpt", "value": answer(at)}]} for at in range(30)
    ],
    "preference": [{"prompt": question(at), "chosen": answer(at), "rejected": "No."} for at in range(30)],
    "kto": [{"prompt": question(at), "completion": answer(at), "label": at % 3 > 0} for at in range(30)],
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_each_format_in_each_container_becomes_a_task(tmp_path: Path, name: str, suffix: str) -> None:
    rows = FORMATS[name]
    if suffix == ".csv":
        rows = [{key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows]
    task = made(tmp_path, str(write_rows(tmp_path / f"boxes{suffix}", rows)))
    kept = sum(row.get("label", True) for row in FORMATS[name])
    assert len(task.train) + len(task.dev) + len(task.test) == kept
    assert (task.name, task.output_type, task.metric) == ("boxes", "text", "token_f1")
    assert task.spec.columns.model_fields_set == set()
    assert task.said[0].split("format ")[1].startswith(name)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_a_table_of_no_known_format_is_guessed(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    task = made(tmp_path, str(write_rows(tmp_path / f"tickets{suffix}", tickets())))
    columns = task.spec.columns
    assert (columns.input, columns.output, columns.id) == ("customer message", "team", "ticket_id")
    assert (task.output_type, task.labels, task.metric) == ("label", tuple(sorted(TEAMS)), "accuracy")
    assert all(team in task.instruction for team in TEAMS)
    said = capsys.readouterr().err
    assert "column 'customer message' (by a word of its name)" in said
    assert "column 'team' (by its name)" in said


def test_the_file_is_short_and_every_offered_line_is_right(tmp_path: Path) -> None:
    made(tmp_path, str(write_csv(tmp_path / "tickets.csv", tickets())))
    text = (tmp_path / "task.yaml").read_text()
    assert len(text.splitlines()) < 45
    assert max(map(len, text.splitlines())) <= 128
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")
    for code, _ in OPTIONAL:
        text = text.replace(f"# {code}", code)
    text = text.replace("# time: created_at", "time: created_at")
    (tmp_path / "task.yaml").write_text(text)
    spec = load_task(tmp_path).spec
    assert (spec.target, spec.columns.time, spec.traffic and spec.traffic.months) == (0.85, "created_at", 12)
    recommended_recipe(100, 10**8, overrides=spec.train, where="", seed=0)
    assert Draft202012Validator(published_schema()).is_valid(yaml.safe_load(text))


def test_a_json_draft_names_the_keys_of_all_rows(tmp_path: Path) -> None:
    rows = [{"input": question(at), "output": {"box": at, **({"by": "x"} if at % 2 else {})}} for at in range(30)]
    task = made(tmp_path, str(write_rows(tmp_path / "b.jsonl", rows)))
    assert (task.output_type, task.metric) == ("json", "json_fields")
    assert "with the keys box, by, and" in task.instruction


def test_flags_say_what_would_be_guessed(tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "t.csv", tickets())
    dev = write_csv(tmp_path / "later.csv", [{**row, "customer message": f"{row['customer message']}!?"} for row in tickets(8)])
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("Lamps are kept in the cellar.")
    out = tmp_path / "deep" / "out"
    code = go(
        *(str(rows), "--out", str(out), "--name", "my task", "--input", "created_at", "--output", "customer message"),
        *("--instruction", "Say: *what*?", "--model", "org/model", "--metric", "chrf", "--dev", str(dev)),
        *("--documents", str(tmp_path / "docs")),
    )
    assert code == 1  # the dates are the same in train and dev: the file stays, and the problems are listed
    spec = read_spec(out / "task.yaml")
    assert (spec.name, spec.columns.input, spec.columns.output) == ("my-task", "created_at", "customer message")
    assert (spec.instruction, spec.model.model_name_or_path, spec.metric[0].name) == ("Say: *what*?", "org/model", "chrf")
    assert (spec.data.train, spec.data.dev, spec.data.documents) == ("../../t.csv", "../../later.csv", "../../docs")


def test_a_folder_of_splits(tmp_path: Path) -> None:
    rows = [{"question": question(at), "answer": answer(at)} for at in range(40)]
    folder = tmp_path / "Våre ord"
    (folder / "documents").mkdir(parents=True)
    (folder / "documents" / "one.md").write_text("All boxes.")
    write_rows(folder / "train-00000-of-00001.parquet", rows[:20])
    write_rows(folder / "validation.csv", rows[20:30])
    write_rows(folder / "TEST.jsonl", rows[30:])
    (folder / "instruction.md").write_text("Name the box.\n")
    task = made(folder, str(folder))
    assert [len(task.train), len(task.dev), len(task.test), len(task.documents)] == [20, 10, 10, 1]
    assert (task.name, task.instruction, task.spec.instruction) == ("Vare-ord", "Name the box.", "instruction.md")
    (folder / "task.yaml").unlink()
    write_rows(folder / "train.jsonl", rows[:20])
    with pytest.raises(AdvisorError, match="several files could be the train split"):
        go(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdvisorError, match="no file here is called train"):
        go(str(tmp_path / "empty"))


def test_a_folder_that_names_no_task_is_named_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "boxes").mkdir()
    assert (
        made(tmp_path / "boxes", str(write_rows(tmp_path / "boxes" / "train.jsonl", FORMATS["input/output"]))).name == "boxes"
    )


def test_splits_beside_a_file_are_mentioned_and_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "test.jsonl", FORMATS["input/output"])
    task = made(tmp_path, str(write_rows(tmp_path / "train.jsonl", FORMATS["input/output"])))
    assert task.spec.data.test is None
    assert "not taken: test.jsonl. Name the folder" in capsys.readouterr().err


def test_an_instruction_that_all_rows_have_is_the_tasks(tmp_path: Path) -> None:
    rows = [{"instruction": "Name the: box\n\nIn full.", "input": question(at), "output": answer(at)} for at in range(30)]
    task = made(tmp_path, str(write_rows(tmp_path / "a.jsonl", rows)))
    assert task.instruction == "Name the: box\n\nIn full."
    assert task.train[0].messages[0].content.startswith("What stands on shelf")  # it is not told twice
    assert "instruction: |-\n  Name the: box\n\n  In full.\n" in (tmp_path / "task.yaml").read_text()


def test_a_column_that_is_called_an_id_and_holds_lists_is_none(tmp_path: Path) -> None:
    rows = [{"row no": [at], "question": question(at), "answer": answer(at)} for at in range(30)]
    assert made(tmp_path, str(write_rows(tmp_path / "a.jsonl", rows))).spec.columns.id == "id"


def test_an_instruction_of_the_data_never_names_a_file(tmp_path: Path) -> None:
    rows = [{"instruction": "secret.txt", "input": question(at), "output": answer(at)} for at in range(30)]
    (tmp_path / "secret.txt").write_text("hidden")
    task = made(tmp_path, str(write_rows(tmp_path / "a.jsonl", rows)))
    assert "hidden" not in task.instruction
    assert task.train[0].text.startswith("secret.txt\n")


def test_a_system_message_of_the_rows_is_left_to_them(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "system", "content": "Be brief."}, *row["messages"]]} for row in FORMATS["messages"]]
    task = made(tmp_path, str(write_rows(tmp_path / "a.jsonl", rows)))
    assert task.instruction == ""
    assert "same system message" in (tmp_path / "task.yaml").read_text()


@pytest.mark.parametrize(
    ("targets", "column", "kind"),
    [
        ([f'{{"a": {at}}}' for at in range(30)], "x", "json"),
        ([f"{at}.5" for at in range(30)], "x", "number"),
        ([str(at % 3) for at in range(30)], "score", "number"),
        ([str(at % 3) for at in range(30)], "label", "label"),
        (["yes", "no"] * 15, "x", "label"),
        (["yes", "no"] * 9, "x", "text"),  # 18 rows tell nothing
        (["a long answer " * 9, "another one " * 9] * 20, "x", "text"),
        ([f"answer {at}" for at in range(30)], "label", "text"),
        ([], "x", "text"),
    ],
)
def test_what_an_answer_is(targets: list[str], column: str, kind: str) -> None:
    assert guess_output(targets, column).type == kind


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "{q}", "label": "{l}"}, ("text", "label")),
        ({"id": "{n}", "sentence": "{q}", "label": "{n2}", "label_text": "{l}"}, ("sentence", "label_text")),
        ({"utterance": "{q}", "intent": "{l}", "domain": "{l}"}, ("utterance", "intent")),
        ({"context": "{q}{q}{q}", "question": "{q}", "answer": "{a}"}, ("question", "answer")),
        ({"article_text": "{q}", "summaryText": "{a}"}, ("article_text", "summaryText")),
        ({"answer_text": "{a}", "question_text": "{q}"}, ("question_text", "answer_text")),
        ({"response_time": "{n}", "request": "{q}", "response": "{a}"}, ("request", "response")),
        ({"Spalte A": "{q}", "Spalte B": "{l}"}, ("Spalte A", "Spalte B")),
        ({"Spalte A": "{q}", "Spalte B": "{a}"}, ("Spalte A", "Spalte B")),
        ({"eins": "{l}", "zwei": "{l}", "drei": "{q}"}, ("drei", None)),
        ({"n": "{n}", "m": "{n2}"}, (None, "m")),
    ],
)
def test_which_columns(row: dict[str, str], expected: tuple[str | None, str | None]) -> None:
    rows = [
        {key: form.format(q=question(at), a=answer(at), l=TEAMS[at % 4], n=at, n2=at % 4) for key, form in row.items()}
        for at in range(40)
    ]
    asks, answers = guess_columns(columns_of(rows), len(rows))
    assert (asks and asks.value, answers and answers.value) == expected


def test_without_a_guess_flag_or_terminal_the_error_shows_the_columns(tmp_path: Path) -> None:
    rows = [{"eins": TEAMS[at % 4], "zwei": TEAMS[at % 3], "drei": question(at)} for at in range(30)]
    file = str(write_csv(tmp_path / "t.csv", rows))
    with pytest.raises(UsageError) as caught:
        go(file)
    assert "--output COLUMN" in caught.value.do
    assert f"eins                 {TEAMS[0]} | {TEAMS[1]}" in caught.value.what
    with pytest.raises(UsageError, match=r"no column 'zwie' \(did you mean 'zwei'\?\)"):
        go(file, "--output", "zwie")
    with pytest.raises(UsageError, match="cannot be both"):
        go(file, "--output", "drei")
    assert [one.name for one in tmp_path.iterdir()] == ["t.csv"]
    assert made(tmp_path, file, "--output", "zwei").spec.columns.input == "drei"


def test_questions_on_stderr_with_the_guess_in_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "", "taem", "team", "Sort it.", "some/model")
    assert go(str(write_csv(tmp_path / "t.csv", tickets()))) == 0
    spec = read_spec(tmp_path / "task.yaml")
    assert (spec.columns.input, spec.columns.output) == ("customer message", "team")
    assert (spec.instruction, spec.model.model_name_or_path) == ("Sort it.", "some/model")
    said = capsys.readouterr()
    assert "Which column is asked? (by a word of its name) [customer message] " in said.err
    assert "did you mean 'team'?" in said.err
    assert "task.yaml is written" in said.out
    assert "?" not in said.out.replace("(power", "")


@pytest.mark.parametrize("lines", [(), ("",), ("", "", ""), ("nothing", "like", "this")])
def test_an_end_of_the_answers_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...]
) -> None:
    type_in(monkeypatch, *lines)
    file = write_csv(tmp_path / "t.csv", tickets())
    with pytest.raises(Interrupted, match="nothing was written") as caught:
        go(str(file), "--out", str(tmp_path / "out"))
    assert caught.value.exit_code == 130
    assert [one.name for one in tmp_path.iterdir()] == ["t.csv"]


def test_files_that_are_named_stand_relative_to_the_task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "b.jsonl", FORMATS["input/output"])
    (tmp_path / "say.md").write_text("Name the box.")
    (tmp_path / "weights").mkdir()
    type_in(monkeypatch, "say.md", "weights")
    assert go("b.jsonl", "--out", "a") == 0
    assert go("b.jsonl", "--out", "deep/b", "--instruction", "say.md", "--model", "weights", "--yes") == 0
    for folder, back in (("a", ".."), ("deep/b", "../..")):
        task = load_task(tmp_path / folder)
        assert (task.spec.instruction, task.instruction) == (f"{back}/say.md", "Name the box.")
        assert task.spec.model.model_name_or_path == f"{back}/weights"


def test_names_that_are_no_text_are_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a\udcff\x1b[31m\nb"
    folder.mkdir()
    task = made(folder, str(write_rows(folder / "c\udcfe\t.jsonl", FORMATS["input/output"])))
    assert task.name == "c"
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err


def test_with_yes_or_a_known_format_no_column_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch)
    made(tmp_path, str(write_csv(tmp_path / "t.csv", tickets())))
    type_in(monkeypatch, "", "")  # instruction and model
    file = write_rows(tmp_path / "b.jsonl", FORMATS["input/output"])
    assert go(str(file), "--out", str(tmp_path / "b")) == 0


def test_a_task_file_is_never_overwritten(tmp_path: Path) -> None:
    file = str(write_rows(tmp_path / "b.jsonl", FORMATS["input/output"]))
    (tmp_path / "task.yaml").write_text("mine")
    with pytest.raises(AdvisorError, match="not overwritten") as caught:
        go(file)
    assert "--out FOLDER" in caught.value.do
    assert (tmp_path / "task.yaml").read_text() == "mine"


def test_a_schema_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / SCHEMA_FILE).write_text('{"type": "object"}')
    made(tmp_path, str(write_rows(tmp_path / "b.jsonl", FORMATS["input/output"])))
    assert (tmp_path / SCHEMA_FILE).read_text() == '{"type": "object"}'
    assert "yaml-language-server" not in (tmp_path / "task.yaml").read_text()


def test_the_file_stays_where_the_data_have_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*FORMATS["input/output"], {"input": "x", "output": ""}]
    assert go(str(write_rows(tmp_path / "b.jsonl", rows))) == 1
    assert "b.jsonl:31: output: the output is empty" in capsys.readouterr().err
    with pytest.raises(ProblemsError):
        load_task(tmp_path)
    (tmp_path / "task.yaml").unlink()
    assert go(str(tmp_path / "b.jsonl"), "--json") == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["line"] == 31


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere.csv"], "no such file or folder"),
        (["b.jsonl", "--dev", "nowhere"], "no such file or folder"),
        (["b.jsonl", "--metric", "acuracy"], "did you mean 'accuracy'?"),
        (["b.jsonl", "--metric", "macro_f1"], "cannot decide"),
        (["b.jsonl", "--metric", "judge"], "needs options"),
        (["empty.jsonl"], "no rows"),
        (["broken.jsonl"], "broken JSON"),
        (["a" * 5000], "cannot be read"),
        ([], "which data?"),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], says: str) -> None:
    write_rows(tmp_path / "b.jsonl", FORMATS["input/output"])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text("{no\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdvisorError) as caught:
        go(*argv)
    assert says in str(caught.value)
    assert caught.value.do
    assert not (tmp_path / "task.yaml").exists()


def test_a_dataset_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ProblemsError) as caught:
        go("no-such-org/no-such-dataset")
    assert "name a file" in caught.value.do
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_named_with_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`org/boxes` as the Hub would give it: a local copy stands in for it, with a train and a validation split."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "boxes" / "org" / "boxes"
    copy.mkdir(parents=True)
    rows = [{"question": question(at), "answer": answer(at)} for at in range(40)]
    write_rows(copy / "train.jsonl", rows[:30])
    write_rows(copy / "validation.jsonl", rows[30:])
    task = made(tmp_path / "boxes", "org/boxes")
    dumped = task.spec.data.model_dump(exclude_unset=True)
    assert dumped == {
        "train": {"dataset_name": "org/boxes", "split": "train"},
        "dev": {"dataset_name": "org/boxes", "split": "validation"},
    }
    assert (task.name, len(task.dev), task.spec.columns.input) == ("boxes", 10, "question")
    assert "  train: {dataset_name: org/boxes, split: train}\n" in (tmp_path / "boxes" / "task.yaml").read_text()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_are_quoted(text: str) -> None:
    assert yaml.safe_load(f"a: {scalar(text)}\nb: 1\n") == {"a": text, "b": 1}
    comment = in_comment(text)
    assert len(comment) <= 100
    assert comment.isprintable()
    assert yaml.safe_load(f"a: 1  # {comment}\n") == {"a": 1}


def test_hostile_columns_and_labels_end_in_a_valid_file(tmp_path: Path) -> None:
    for at, name in enumerate(one for one in HOSTILE if one.strip()):
        other = f"{name} 2"
        # A label that is only white space is no answer.
        rows = [{name: question(row), other: f"{HOSTILE[(at + row % 3) % len(HOSTILE)]}|"} for row in range(24)]
        folder = tmp_path / str(at)
        folder.mkdir()
        file = write_rows(folder / "data.jsonl", rows)
        code = go(str(file), f"--input={name}", f"--output={other}", f"--instruction={name}\n", "--yes")
        spec = read_spec(folder / "task.yaml")
        assert (spec.columns.input, spec.columns.output) == (name, other)
        assert spec.instruction == f"{name}\n"
        assert code == 0, name


def test_ten_thousand_columns(tmp_path: Path) -> None:
    rows = [{f"c{at}": f"{row} {at}" for at in range(10_000)} | {"the_last": question(row)} for row in range(25)]
    file = str(write_rows(tmp_path / "wide.jsonl", rows))
    with pytest.raises(UsageError, match="and 9,981 more") as caught:
        go(file)
    assert len(caught.value.what) < 3000
    task = made(tmp_path, file, "--input", "the_last", "--output", "c9999")
    assert task.train[0].target.endswith("9999")


CELLS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
CELLS |= st.sampled_from([*HOSTILE, "yes", "no", "1", "{}"]) | st.lists(st.text(max_size=3), max_size=2)
NAMES = st.text(max_size=10) | st.sampled_from([*HOSTILE, "text", "label", "input", "output", "messages", "prompt", "chosen"])
TABLES = st.lists(NAMES, max_size=5, unique=True).flatmap(
    lambda names: (
        st.lists(st.fixed_dictionaries(dict.fromkeys(names, CELLS)), max_size=30)
        | st.lists(st.fixed_dictionaries({"question": st.text(min_size=1), **dict.fromkeys(names, CELLS)}), min_size=10)
    )
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=TABLES, suffix=st.sampled_from([".jsonl", ".json", ".csv"]), named=st.booleans())
def test_any_table_ends_in_a_valid_file_or_a_clear_error(
    tmp_path: Path, rows: list[dict[str, Any]], suffix: str, named: bool
) -> None:
    file = tmp_path / f"data{suffix}"
    (tmp_path / "task.yaml").unlink(missing_ok=True)
    if suffix == ".csv":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([list(rows[0]) if rows else [], *(row.values() for row in rows)])
        file.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) if suffix == ".jsonl" else json.dumps(rows))
    names = list(rows[0]) if rows else []
    flags = [f"--input={names[0]}", f"--output={names[-1]}"] if named and names else []
    code, do = 1, ""
    try:
        code = go(str(file), "--yes", *flags)
    except AdvisorError as error:
        do = error.do
    if do:
        assert not (tmp_path / "task.yaml").exists()
        return
    spec = read_spec(tmp_path / "task.yaml")
    assert Draft202012Validator(published_schema()).is_valid(yaml.safe_load((tmp_path / "task.yaml").read_text()))
    assert spec.data.train == file.name
    if code == 0:
        load_task(tmp_path)


def test_the_published_schema_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    published = Path(advisor.__file__).parent / SCHEMA_FILE
    assert published.read_text() == schema_text(), f"write it anew: advisor init --schema > {published}"
    assert go("--schema") == 0
    assert capsys.readouterr().out == schema_text()


@pytest.mark.parametrize(
    "train",
    [
        {"num_train_epochs": 1, "learning_rate": "1e-4", "lora_target_modules": ["q_proj"], "lr_scheduler_type": "linear"},
        {"warmup_steps": 0, "seed": 3.0, "lora_target_modules": "all-linear", "instruction": "full", "lora_r": " 8 "},
        {},
    ],
)
def test_the_published_schema_accepts_what_the_trainer_takes(train: dict[str, Any]) -> None:
    body = {"data": {"train": "a"}, "model": {"model_name_or_path": "m"}, "train": train}
    recommended_recipe(100, 10**8, overrides=train, where="", seed=0)
    assert list(Draft202012Validator(published_schema()).iter_errors(body)) == []


@pytest.mark.parametrize(
    "train", [{"lerning_rate": 1}, {"lora_r": []}, {"lr_scheduler_type": "step"}, {"learning_rate": "fast"}, 5]
)
def test_the_published_schema_refuses_what_the_trainer_refuses(train: Any) -> None:
    body = {"data": {"train": "a"}, "model": {"model_name_or_path": "m"}, "train": train}
    assert not Draft202012Validator(published_schema()).is_valid(body)
