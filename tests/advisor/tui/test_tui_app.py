"""The app driven headless by Textual's Pilot, with a scripted flow in place of the one that needs a model."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Button, DataTable, Input, OptionList, ProgressBar, Sparkline, Static, TabbedContent

import advisor
from advisor.decision.compare import Comparison
from advisor.decision.outcome import Reevaluation
from advisor.decision.recommend import Reason, Recommendation
from advisor.gate.policy import RuleVerdict, Verdict, not_applicable
from advisor.report.journey import Journey
from advisor.tui.app import AdvisorApp
from advisor.tui.flow import STAGES, RealFlow
from advisor.tui.live import Candidates, Stages
from advisor.tui.pick import PickScreen
from advisor.tui.report import ReportScreen
from advisor.tui.run import RunScreen
from advisor.tui.text import duration, number
from advisor.tui.work import Work
from evals.errors import AdvisorError, Interrupted, Problem, ProblemsError, clean
from evals.events import (
    CandidateScored,
    Note,
    OnEvent,
    Progress,
    StageFinished,
    StageStarted,
    TrainingStep,
    broadcast,
    ignore,
)

HOSTILE = "[red]x[/] $(boom) \x1b[31m"
HARMLESS = "[red]x[/] $(boom) ␛[31m"
SMALL, LARGE = (80, 24), (120, 36)


def comparison(a: str, b: str, split: str = "dev") -> Comparison:
    return Comparison(a, b, split, "json_fields", 70, 0.214, 0.153, 0.275, 1e-6, 2e-6)


def recommendation(action: Any, candidate: str, name: str = "few_shot") -> Recommendation:
    reasons = (Reason("training_pays", f"a probe beats {name} by +21.4 points", 0),)
    comparisons = (comparison("probe", name),)
    spent, would_change, cannot_tell = {"requests": 420.0}, ("more rows",), ("70 dev items only",)
    return Recommendation(action, candidate, reasons, comparisons, spent, would_change, cannot_tell)


VERDICT = Verdict(
    "pass",
    (RuleVerdict("min_gain", 0.238, 0.186, 0.29, 0.03, "pass", "gain of tuned on few_shot, locked test"),),
    "the tuned model against the team's policy",
)


class ScriptedFlow:
    """Plays a run. `hold(name)` makes it wait at a place that the test then releases; `calls` is what it was asked."""

    def __init__(self, *, advice: Recommendation | None = None, name: str = "few_shot", task: str = "triage") -> None:
        self.advice = advice or recommendation("fine_tune", "tuned")
        self.name, self.task_name = name, task
        self.calls: list[tuple[str, bool | None]] = []
        self.opened: list[str] = []
        self.errors: list[BaseException] = []
        self.interrupted = False
        self.gates: dict[str, threading.Event] = {}

    def hold(self, *names: str) -> None:
        self.gates.update({name: threading.Event() for name in names})

    def release(self, name: str) -> None:
        self.gates[name].set()

    def at(self, name: str, on_event: OnEvent) -> None:
        """As long as the gate is shut, work on, and tell of it."""
        while name in self.gates and not self.gates[name].wait(0.05):
            on_event(Progress(f"waiting at {name}", 34, 70, "items", 2.0, 18.0))

    def task(self, name: str) -> Any:
        self.opened.append(name)
        return SimpleNamespace(name=self.task_name)

    def run(self, name: str, runs_dir: Path) -> Any:
        self.opened.append(f"run {name}")
        return SimpleNamespace(name=self.task_name)

    def go(self, task: Any, runs_dir: Path, on_event: OnEvent, *, until: str, train: bool | None) -> Journey:
        self.calls.append((until, train))
        try:
            return self._play(task, runs_dir, broadcast([on_event]), until, train)
        except KeyboardInterrupt:
            self.interrupted = True
            raise

    def _play(self, task: Any, runs_dir: Path, on_event: OnEvent, until: str, train: bool | None) -> Journey:
        folder = runs_dir / "triage-1a2b3c4d"
        folder.mkdir(parents=True, exist_ok=True)
        again = until == "verdict"
        self._stage(on_event, "intake", lambda: on_event(Note(f"70 dev items of {self.name}", "warning")), again)
        if self.errors:
            on_event(StageStarted("baselines", "Measure"))
            raise self.errors.pop()

        def measure() -> None:
            on_event(CandidateScored("majority", "dev", "json_fields", 0.312, 70, 0.1, again))
            self.at("baselines", on_event)
            on_event(CandidateScored(self.name, "dev", "json_fields", 0.655, 70, 39.0, again))

        self._stage(on_event, "baselines", measure, again)
        self._stage(on_event, "advice", lambda: None if again else self._train(on_event, "probe"), again)
        (folder / "report.md").write_text(f"# Report\n\n```text\n{self.name}\n```\n", encoding="utf-8")
        if not again:
            return Journey(folder, task, (), self.advice)
        if train:
            self._stage(on_event, "training", lambda: self._train(on_event, "training"))
            self._stage(on_event, "repair", lambda: None)
        self._stage(
            on_event,
            "re-evaluation",
            lambda: on_event(CandidateScored("tuned", "test", "json_fields", 0.893, 90, 31.0)),
        )
        self._stage(on_event, "verdict", lambda: None)
        result = Reevaluation("tuned", comparison("tuned", self.name, "test"), (), (), None, 1)
        verdict = VERDICT if train else not_applicable(self.advice.action)
        return Journey(folder, task, (), self.advice, None, result, verdict)

    def _stage(self, on_event: OnEvent, name: str, work: Callable[[], None], reused: bool = False) -> None:
        on_event(StageStarted(name, f"title of {name}"))
        work()
        on_event(StageFinished(name, 61.0, f"summary of {name}", reused))

    def _train(self, on_event: OnEvent, purpose: str) -> None:
        for step in range(1, 11):
            dev_loss = 0.61 if step == 5 else None
            more = {"dev_score": 0.75, "kl": 0.0312} if step == 4 else {}
            on_event(TrainingStep(purpose, step, 10, 3.0 / step, dev_loss, 2e-4, 512.0, 10.0 - step, 2310.0, **more))
        self.at(purpose, on_event)


async def until(pilot: Pilot[Any], holds: Callable[[], bool], seconds: float = 10.0) -> None:
    for _ in range(round(seconds / 0.02)):
        await pilot.pause(0.02)
        if holds():
            return
    raise AssertionError(f"this never came; the screen is\n{shown(pilot.app)}")


def shown(app: Any) -> str:
    """The characters that the terminal would show."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def text_of(app: Any, selector: str) -> str:
    return str(app.screen.query_one(selector, Static).content)


def states(app: Any) -> dict[str, str]:
    return {name: stage.state for name, stage in app.screen.query_one(Stages).stages.items()}


def buttons(app: Any) -> list[str]:
    return [str(one.label) for one in app.screen.query(Button) if one.display]


def phase(app: Any) -> str:
    return app.screen.phase if isinstance(app.screen, RunScreen) else ""


async def start(pilot: Pilot[Any]) -> None:
    await until(pilot, lambda: isinstance(pilot.app.screen, PickScreen))
    await pilot.press("enter")


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_an_example_from_the_first_screen_to_the_verdict(tmp_path: Path, size: tuple[int, int]) -> None:
    flow = ScriptedFlow()
    flow.hold("baselines", "probe", "training")
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "customer messages into JSON tickets" in shown(app))
        await pilot.press("down", "down", "enter")

        await until(pilot, lambda: phase(app) == "running" and "34 of 70 items" in shown(app))
        assert flow.opened == ["triage"]
        assert states(app) == dict.fromkeys(STAGES, "waiting") | {"intake": "done", "baselines": "running"}
        assert "2.0/s, 18 s left" in shown(app)
        assert app.screen.query_one(ProgressBar).percentage == pytest.approx(34 / 70)
        assert "majority" in shown(app)
        assert "0.655" not in shown(app)
        assert buttons(app) == ["Stop"]
        await pilot.press("t")
        assert flow.calls == [("advice", None)]

        flow.release("baselines")
        await until(pilot, lambda: states(app)["advice"] == "running" and "loss 0.300   dev loss 0.610" in shown(app))
        assert "dev score 0.750   KL 0.031" in shown(app)
        assert "0.655" in shown(app)
        assert "512 tokens/s   2,310 MiB" in shown(app)
        assert list(app.screen.query_one(Sparkline).data or ()) == pytest.approx([3.0 / step for step in range(1, 11)])

        flow.release("probe")
        await until(pilot, lambda: phase(app) == "deciding")
        await until(pilot, lambda: "Fine-tune." in shown(app))
        told = text_of(app, "#recommendation-text")
        for part in ("a probe beats few_shot by +21.4", "+15.3 to +27.5", "70 dev items only", "more rows", "420"):
            assert part in told
        assert buttons(app) == ["Start training", "Quit"]
        assert "Start training" in shown(app)

        await pilot.press("t", "t")
        await until(pilot, lambda: states(app)["training"] == "running")
        assert flow.calls == [("advice", None), ("verdict", True)]
        flow.release("training")
        await until(pilot, lambda: phase(app) == "finished")
        await until(pilot, lambda: "PASS: every rule of the gate holds." in shown(app))
        assert states(app) == dict.fromkeys(STAGES, "done")
        table = app.screen.query_one(Candidates)
        assert [str(table.get_row_at(row)[0]) for row in range(table.row_count)] == ["majority", "few_shot", "tuned"]
        assert "min_gain  0.2380  (0.1860 to 0.2900)  limit 0.03" in text_of(app, "#verdict-text")
        assert buttons(app) == ["Read the report", "Back", "Quit"]

        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, ReportScreen) and "Report" in shown(app))
        await pilot.press("escape", "escape")
        await until(pilot, lambda: isinstance(app.screen, PickScreen) and "triage-1a2b3c4d" not in shown(app))


async def test_where_training_is_not_advised_the_test_may_be_opened_without_it(tmp_path: Path) -> None:
    flow = ScriptedFlow(advice=recommendation("prompt", "few_shot"))
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=SMALL) as pilot:
        await start(pilot)
        await until(pilot, lambda: phase(app) == "deciding")
        assert buttons(app) == ["Train anyway", "Open the locked test without training", "Quit"]
        await until(pilot, lambda: all(word in shown(app) for word in (*buttons(app), "your decision")))
        await pilot.press("enter")
        assert flow.calls == [("advice", None)], "an Enter too many must not open the locked test"
        await pilot.click("#open")
        await until(pilot, lambda: phase(app) == "finished")
        assert flow.calls[-1] == ("verdict", False)
        assert states(app)["training"] == "skipped"
        assert "Not applicable" in text_of(app, "#verdict-text")


async def test_training_against_the_advice(tmp_path: Path) -> None:
    flow = ScriptedFlow(advice=recommendation("undecided", "few_shot"))
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=LARGE) as pilot:
        await start(pilot)
        await until(pilot, lambda: phase(app) == "deciding")
        await pilot.click("#train")
        await until(pilot, lambda: phase(app) == "finished")
        assert flow.calls[-1] == ("verdict", True)


async def test_an_error_says_what_to_do_and_going_on_tries_again(tmp_path: Path) -> None:
    flow = ScriptedFlow()
    flow.errors = [AdvisorError("the disk is full", where="/runs/x", do="free some space.")]
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=SMALL) as pilot:
        await start(pilot)
        await until(pilot, lambda: phase(app) == "failed" and "the disk is full" in shown(app))
        assert states(app)["baselines"] == "failed"
        assert "What to do: free some space." in shown(app)
        assert "/runs/x" in shown(app)
        assert buttons(app) == ["Go on", "Back", "Quit"]
        await pilot.click("#resume")
        await until(pilot, lambda: phase(app) == "deciding")
        assert flow.calls == [("advice", None)] * 2
        assert app.screen.query_one(TabbedContent).active == "recommendation-pane"


async def test_an_unexpected_exception_is_an_error_like_any_other(tmp_path: Path) -> None:
    flow = ScriptedFlow()
    flow.errors = [ZeroDivisionError(f"by {HOSTILE}")]
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=LARGE) as pilot:
        await start(pilot)
        await until(pilot, lambda: f"unexpected ZeroDivisionError: by {HARMLESS}" in shown(app))
        assert "What to do: try again" in shown(app)
        assert "test_tui_app.py" in text_of(app, "#problem-text")
        assert app.is_running


async def test_all_problems_of_a_task_are_shown_before_anything_runs(tmp_path: Path) -> None:
    class Refusing(ScriptedFlow):
        def task(self, name: str) -> Any:
            raise ProblemsError([Problem("task.yaml", line, f"key{line}", HOSTILE) for line in range(1, 60)])

    flow = Refusing()
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=SMALL) as pilot:
        await start(pilot)
        await until(pilot, lambda: "59 problems found" in shown(app))
        told = text_of(app, "#problem")
        assert f"task.yaml:40: key40: {HARMLESS}" in told
        assert "and 19 more" in told
        assert flow.calls == []


async def test_an_unknown_path_says_what_to_do(tmp_path: Path) -> None:
    app = AdvisorApp(tmp_path, RealFlow())
    async with app.run_test(size=SMALL) as pilot:
        await until(pilot, lambda: isinstance(app.screen, PickScreen))
        app.screen.query_one(Input).focus()
        await pilot.press("enter")
        await until(pilot, lambda: "no path was given" in shown(app))
        await pilot.press(*"no/q/here", "enter")
        await until(pilot, lambda: "there is no such task file, folder or example" in shown(app))
        told = text_of(app, "#problem")
        assert "no/q/here" in told
        assert "name a task.yaml, its folder, or one of the examples: capitals, handbook, triage." in told


async def test_a_path_of_ones_own_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    flow = ScriptedFlow()
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=SMALL) as pilot:
        await until(pilot, lambda: isinstance(app.screen, PickScreen))
        field = app.screen.query_one(Input)
        field.focus()
        field.value = " '~/my task' "
        await pilot.press("enter")
        await until(pilot, lambda: phase(app) == "deciding")
        assert flow.opened == ["/home/someone/my task"]


async def test_hostile_names_and_sentences_neither_break_nor_style_the_screen(tmp_path: Path) -> None:
    flow = ScriptedFlow(advice=recommendation("prompt", HOSTILE, HOSTILE), name=HOSTILE, task=HOSTILE)
    app = AdvisorApp(tmp_path, flow)

    def harmless() -> bool:
        text = shown(app)
        assert "\x1b" not in text
        return HARMLESS in text

    async with app.run_test(size=LARGE) as pilot:
        await start(pilot)
        await until(pilot, lambda: phase(app) == "deciding" and harmless())
        assert HARMLESS in shown(app).splitlines()[0], "the header names the task"
        table = app.screen.query_one(Candidates)
        assert str(table.get_row_at(1)[0]) == HARMLESS
        assert f"a probe beats {HARMLESS} by" in text_of(app, "#recommendation-text")
        reds = [
            segment.text
            for strip in app.screen._compositor.render_strips()
            for segment in strip
            if segment.style and segment.style.color and segment.style.color.name in {"red", "#ff0000"}
        ]
        assert reds == []
        app.screen.query_one(TabbedContent).active = "live-pane"
        await until(pilot, lambda: f"70 dev items of {HARMLESS}" in shown(app))
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, ReportScreen) and harmless())


async def test_stopping_keeps_the_run_and_going_on_resumes_it(tmp_path: Path) -> None:
    flow = ScriptedFlow()
    flow.hold("training")
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=SMALL) as pilot:
        await start(pilot)
        await until(pilot, lambda: phase(app) == "deciding")
        await pilot.press("t")
        await until(pilot, lambda: states(app)["training"] == "running")
        await pilot.press("s")
        await until(pilot, lambda: phase(app) == "stopped" and "Stopped, resumable." in shown(app))
        assert flow.interrupted
        assert states(app)["training"] == "stopped"
        assert "stopped, resumable" in shown(app)
        flow.release("training")
        await pilot.click("#resume")
        await until(pilot, lambda: phase(app) == "finished")
        assert flow.calls == [("advice", None), ("verdict", True), ("verdict", True)]


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_quitting_while_a_stage_runs_stops_the_flow_and_ends_the_app(tmp_path: Path, key: str) -> None:
    flow = ScriptedFlow()
    flow.hold("baselines")
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=SMALL) as pilot:
        await start(pilot)
        await until(pilot, lambda: phase(app) == "running" and "34 of 70" in shown(app))
        await pilot.press(key)
        await until(pilot, lambda: not app.is_running)
    assert flow.interrupted
    assert app.return_code == Interrupted.exit_code
    assert not app.works[-1].alive


async def test_a_flow_that_does_not_answer_is_left_behind(tmp_path: Path) -> None:
    released = threading.Event()

    class Deaf(ScriptedFlow):
        def go(self, *_: Any, **__: Any) -> Journey:
            released.wait(20)
            raise AdvisorError("too late to be told")

    app = AdvisorApp(tmp_path, Deaf())
    app.GRACE_SECONDS = 0.2
    try:
        async with app.run_test(size=SMALL) as pilot:
            await start(pilot)
            await until(pilot, lambda: phase(app) == "running")
            await pilot.press("q")
            await until(pilot, lambda: phase(app) == "stopping")
            assert "stopping" in shown(app)
            await until(pilot, lambda: not app.is_running)
        assert app.return_code == Interrupted.exit_code
        assert app.works[-1].alive
    finally:
        released.set()


async def test_quit_where_nothing_runs_ends_at_once_without_an_error(tmp_path: Path) -> None:
    app = AdvisorApp(tmp_path, ScriptedFlow())
    async with app.run_test(size=SMALL) as pilot:
        await start(pilot)
        await until(pilot, lambda: phase(app) == "deciding")
        await pilot.press("q")
        await until(pilot, lambda: not app.is_running)
    assert app.return_code == 0


async def test_runs_are_listed_latest_first_and_a_damaged_one_does_no_harm(tmp_path: Path) -> None:
    failed, advised = ({"schema_version": 1, **one} for one in ({"verdict": "fail"}, {"action": "rag"}))
    runs_there = {
        "old-00000001": {"verdict.json": json.dumps(failed), "report.md": "# The old one"},
        "torn-00000002": {"verdict.json": '{"schema_ver', "recommendation.json": "[]"},
        "new-[red]x[_]": {"recommendation.json": json.dumps(advised)},
    }
    for age, (name, files) in enumerate(runs_there.items()):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in {"task.json": "{}", **files}.items():
            (folder / file).write_text(text)
        os.utime(folder / "task.json", (1_800_000_000 + age, 1_800_000_000 + age))
    flow = ScriptedFlow()
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=SMALL) as pilot:
        await until(pilot, lambda: "old-00000001" in shown(app))
        listed = [str(one.prompt).split("  ") for one in app.screen.query_one("#runs", OptionList).options]
        assert [[part.strip() for part in one if part.strip()][:2] for one in listed] == [
            ["new-[red]x[_]", "advice: rag"],
            ["torn-00000002", "unfinished"],
            ["old-00000001", "fail"],
        ]
        runs = app.screen.query_one("#runs", OptionList)
        runs.focus()
        runs.highlighted = 1
        await pilot.press("r")
        await until(pilot, lambda: "this run has no report yet" in shown(app))
        runs.highlighted = 2
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, ReportScreen) and "The old one" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, PickScreen))
        runs.focus()
        runs.highlighted = 2
        await pilot.press("enter")
        await until(pilot, lambda: phase(app) == "deciding")
        assert flow.opened == ["run old-00000001"]


async def test_what_an_event_does_not_know_is_shown_as_unknown(tmp_path: Path) -> None:
    class Vague(ScriptedFlow):
        def _train(self, on_event: OnEvent, purpose: str) -> None:
            unknown: Any = None
            on_event(TrainingStep(purpose, 1, 0, float("nan"), None, unknown, unknown, unknown, float("inf")))
            on_event(Progress("loading a model", 0, 0, ""))
            self.at(purpose, on_event)

    flow = Vague()
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=LARGE) as pilot:
        await start(pilot)
        await until(pilot, lambda: phase(app) == "deciding")
        assert "loss –   dev loss –" in text_of(app, "#training-loss")
        assert "– tokens/s   – MiB" in text_of(app, "#training-speed")


async def test_candidate_rows_and_log_fit_a_window_that_changes_its_size(tmp_path: Path) -> None:
    flow = ScriptedFlow(name="word " * 30)
    app = AdvisorApp(tmp_path, flow)
    async with app.run_test(size=LARGE) as pilot:
        await start(pilot)
        await until(pilot, lambda: phase(app) == "deciding")
        app.screen.query_one(TabbedContent).active = "live-pane"
        log = app.screen.query_one("#log")
        await until(pilot, lambda: "summary of advice" in shown(app))
        await pilot.resize_terminal(*SMALL)
        await until(pilot, lambda: 0 < log.virtual_size.width <= log.scrollable_content_region.width)
        assert isinstance(app.screen.query_one("#candidates"), DataTable)
        assert "Start training" in shown(app)


def test_the_stages_are_the_flows() -> None:
    source = (Path(advisor.__file__).parent / "flow" / "whole.py").read_text(encoding="utf-8")
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    assert [ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "STAGES"] == [STAGES]


def test_the_first_screen_needs_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "trl", "peft", "faiss", "numpy", "scipy", "sklearn", "lm_eval"]
    script = f"import sys, advisor.tui.app; print([one for one in {heavy} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_work_is_interrupted_once_through_the_broadcast() -> None:
    told: list[Any] = []
    seen: list[str] = []

    def job(on_event: OnEvent) -> None:
        listen = broadcast([on_event, ignore])
        work.stop()
        try:
            listen(Note("one"))
        except KeyboardInterrupt:
            seen.append("interrupted")
            listen(Note("what is kept on the way out"))
            raise

    work = Work(job, told.append)
    work.start()._thread.join(5)
    assert seen == ["interrupted"]
    assert [type(one) for one in told] == [Work.Happened, Work.Stopped]


@pytest.mark.parametrize(
    ("raw", "safe"),
    [
        ("a\x1b[2Jb", "a␛[2Jb"),
        ("a\tb\r\nc", "a    b\nc"),
        ("\x9b31m\u202e", "\ufffd31m\ufffd"),
        ("\ud800x", "?x"),
        (7, "7"),
    ],
)
def test_clean_text_holds_nothing_that_a_terminal_obeys(raw: object, safe: str) -> None:
    assert clean(raw) == safe


def test_times_and_figures() -> None:
    assert [duration(one) for one in (0.4, 59.6, 61, 3661)] == ["0 s", "1:00", "1:01", "1:01:01"]
    assert [duration(one) for one in (None, float("inf"))] == ["–", "–"]
    assert [number(one, ".2f") for one in (1.234, None, float("nan"))] == ["1.23", "–", "–"]
