"""What people and CI meet: exit codes, errors that say what to do, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.cli.main import main

HEAVY = ("torch", "transformers", "peft", "trl", "lm_eval", "faiss", "sentence_transformers", "datasets", "textual", "scipy")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from advisor.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "HEAVY []" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_usage_errors_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fly"])
    assert caught.value.code == 2
    assert main([]) == 2  # no terminal here
    assert "interactive terminal" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "bench", "advise", "train", "run"])
def test_a_task_that_is_not_there(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "no-such-task"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "triage" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("verb", ["evaluate", "gate", "report", "export"])
def test_a_run_that_is_not_there(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "no-such-run", "--runs-dir", str(tmp_path)]) == 1
    assert "What to do" in capsys.readouterr().err
    assert main([verb, "capitals", "--runs-dir", str(tmp_path)]) == 1
    assert "no run yet" in capsys.readouterr().err


def test_check_reports_all_problems_with_their_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text('{"input": "a", "output": "b"}\n{broken\n{"input": "c", "output": ""}\n')
    (tmp_path / "task.yaml").write_text("data: {train: train.jsonl}\nmodel: {model_name_or_path: x}\n")
    assert main(["check", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "train.jsonl:2: broken JSON" in said
    assert "train.jsonl:3: output: the output is empty" in said


def test_check_json_is_data_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "capitals", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"][0] == "containment"


def test_missing_model_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(json.dumps({"input": f"question {i} {i * 7}", "output": f"answer {i % 5}"}) + "\n" for i in range(30))
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "task.yaml").write_text("data: {train: train.jsonl}\nmodel: {model_name_or_path: ./no/such/model}\n")
    assert main(["bench", str(tmp_path), "--runs-dir", str(tmp_path / "runs")]) == 1
    said = capsys.readouterr().err
    assert "./no/such/model" in said
    assert "What to do" in said


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("advisor")
    if not command.is_file():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.startswith("advisor 0.")
