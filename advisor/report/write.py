"""The report's files in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advisor.report.markdown import render
from evals.records import write_json, write_text


def write_report(folder: Path, report: dict[str, Any]) -> None:
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", render(report))
