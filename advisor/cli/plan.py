"""A plan for people: the recipe with the source of each setting, rows as they are learnt, what it will take."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from advisor.cli.display import duration
from advisor.cli.mask import print_mask
from advisor.flow.plan import Plan, TrainingPlan
from evals.errors import clean


def print_plan(plan: Plan) -> None:
    """On stdout."""
    console = Console(highlight=False)
    console.print(f"run: {plan.run}", soft_wrap=True, markup=False)
    for sentence in plan.said:
        console.print(f"- {escape(clean(sentence))}", soft_wrap=True)
    if plan.training is None:
        server = plan.server
        console.print(f"server: {server['model']} at {server['base_url']}; it is measured, never trained", markup=False)
        return
    _print_recipe(console, plan.training)
    print_mask(console, plan.training.mask)
    _print_estimate(console, plan.training)


def _print_recipe(console: Console, one: TrainingPlan) -> None:
    table = Table(title=f"Recipe: {one.recipe.title}, on {one.rows:,} rows", title_justify="left", box=None, pad_edge=False)
    for name in ("setting", "value", "why"):
        table.add_column(name, overflow="fold")
    for name, reason in one.reasons.items():
        table.add_row(name, escape(_value(getattr(one.recipe, name))), escape(reason))
    console.print(table)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print_estimate(console: Console, one: TrainingPlan) -> None:
    found = one.estimate
    how = "by a few real steps" if found.calibrated else "by the formula; --calibrate tries a few real steps"
    console.print(f"[bold]Estimate[/bold] ({how}), on {escape(one.machine.processor)}, {one.machine.device}, {one.dtype}:")
    console.print(f"  {found.steps:,} steps, {found.tokens:,} tokens at {found.tokens_per_second:,.0f} a second")
    money = found.money(one.gpu_hour)
    price = f", {money:.2f} at {one.gpu_hour:g} an hour" if money is not None else ""
    console.print(f"  {duration(found.seconds)}{price}")
    if found.memory_mib is not None:
        console.print(f"  {found.memory_mib:,.0f} MiB at the peak; {one.free_mib:,.0f} MiB are free")
    if one.advice:
        console.print(f"  [yellow]{escape(one.advice)}[/yellow]", soft_wrap=True)
    for rows, seconds in one.curve:
        console.print(f"  a point of the learning curve, {rows:,} rows: {duration(seconds)}")
