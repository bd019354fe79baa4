"""RegMean of trained weights with their base: against least squares on the inputs themselves, and by what the model then says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError, UsageError
from evals.events import ignore
from evals.task.example import Example
from tests.random_adapter import fp32, random_adapter
from trainer import regmean as module
from trainer.adapters import WEIGHTS
from trainer.card import read_card
from trainer.job import TrainingJob
from trainer.regmean import RIDGE, regmean, solved, write_regmean
from trainer.repair import Source, source, write_arm
from trainer.replay import Replay

MakeJob = Callable[..., TrainingJob]


def drawn(*shape: int, seed: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x: Any) -> Any:
    return x.T @ x / len(x)


@pytest.mark.parametrize("weight", [0.0, 0.3, 3.0])
def test_what_is_solved_is_least_squares_on_the_inputs(weight: float) -> None:
    """The layer's change is to be what it was on the task's inputs, and nothing on general ones: rows of one linear system."""
    a, task, general = drawn(3, 12, seed=1), drawn(40, 12, seed=2), drawn(30, 12, seed=3) @ drawn(12, 12, seed=4)
    ridge = RIDGE * float(moments(task).diagonal().mean() + weight * moments(general).diagonal().mean())
    left = [task / len(task) ** 0.5, general * (weight / len(general)) ** 0.5, ridge**0.5 * torch.eye(12, dtype=torch.float64)]
    right = [left[0] @ a.T, torch.zeros(30 + 12, 3, dtype=torch.float64)]
    expected = torch.linalg.lstsq(torch.cat(left), torch.cat(right)).solution.T
    assert torch.allclose(solved(a, moments(task), moments(general), weight), expected, atol=1e-9)


def test_where_the_texts_have_nothing_in_common_the_task_keeps_all_and_the_rest_nothing() -> None:
    a, task, general = drawn(2, 8, seed=1), torch.zeros(20, 8, dtype=torch.float64), torch.zeros(20, 8, dtype=torch.float64)
    task[:, :4], general[:, 4:] = drawn(20, 4, seed=2), drawn(20, 4, seed=3)
    found = solved(a, moments(task), moments(general), 1.0)
    assert torch.allclose(found[:, :4], a[:, :4], rtol=0.01, atol=1e-3)
    assert found[:, 4:].abs().max() < 1e-6


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(AdvisorError, match="not finite"):
        solved(torch.full((1, 2), torch.nan), torch.eye(2), torch.eye(2), 1.0)


@pytest.fixture
def trained(make_job: MakeJob) -> Source:
    return source("tuned", random_adapter(make_job("a/training"), 1, 0.05))


@pytest.fixture
def engines(trained: Source, make_job: MakeJob) -> tuple[HfEngine, HfEngine]:
    base = HfEngine(ModelHandle(str(make_job("b/training").model_folder), "float32", ignore))
    return base, base.with_adapter(trained.folder, "arm")


# Texts of other tokens: what a layer is given there differs.
TASK = [[5, 9, 20, 33, 12, 7], [7, 8, 9, 10, 11, 12, 13], [33, 5, 5, 8]]
GENERAL = [[60, 61, 70, 75], [80, 62, 63, 64, 90, 91], [77, 66, 99, 71, 72]]


def test_moments_are_those_of_what_layers_are_given(engines: tuple[HfEngine, HfEngine], make_job: MakeJob) -> None:
    """Held to the inputs that transformers hands to the layers, text by text."""
    base, tuned = engines
    names = [f"model.layers.1.{one}" for one in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")]
    model, given = fp32(make_job("c/training").model_folder), {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: given.setdefault(name, []).append(x[0][0].double())
        )
    with torch.no_grad():
        for ids in TASK:
            model(input_ids=torch.tensor([ids]))
    found = base.moments(TASK, names)
    for name in names:
        assert torch.allclose(found[name].double(), moments(torch.cat(given[name])), atol=1e-5), name
    assert found[names[0]] is found[names[1]], "queries and keys are given the same"
    # With the adapter on, later layers are given something else; switched off, the base is what it was.
    assert not torch.allclose(tuned.moments(TASK, names)[names[2]], found[names[2]], atol=1e-3)
    assert torch.equal(base.moments(TASK, names)[names[2]], found[names[2]])


def test_general_texts_are_answered_as_before_and_the_tasks_as_trained(
    trained: Source, engines: tuple[HfEngine, HfEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    base, tuned = engines
    arms = regmean("tuned", trained)
    folders = [tmp_path / one.name for one in arms]
    heard: list[int] = []
    cards = write_regmean(arms, base, tuned, (TASK, GENERAL), folders, heard.append)
    assert sum(heard) == len(TASK) + len(GENERAL)

    def apart(one: HfEngine, other: HfEngine, texts: list[list[int]]) -> float:
        return sum(sum(each.kl) for each in one.compared(other, texts))

    lost, kept = apart(base, tuned, GENERAL), apart(tuned, base, TASK)
    for folder, card in zip(folders, cards, strict=True):
        assert card == read_card(folder)
        assert card.how == "repair"
        assert card.parents[0].digest == trained.card.digest
        state, before = load_file(folder / WEIGHTS), load_file(trained.folder / WEIGHTS)
        assert {key: one.shape for key, one in state.items()} == {key: one.shape for key, one in before.items()}
        assert all(torch.equal(one, before[key]) for key, one in state.items() if "lora_B" in key)
        assert not any(torch.equal(one, before[key]) for key, one in state.items() if "lora_A" in key)
        # (One name for all: the base's handle holds one of them at a time.)
        arm = base.with_adapter(folder, "arm")
        assert apart(base, arm, GENERAL) < 0.5 * lost, folder
        assert apart(tuned, arm, TASK) < kept, folder
    general = [apart(base, base.with_adapter(folder, "arm"), GENERAL) for folder in folders]
    assert general == sorted(general, reverse=True), "a greater weight holds general texts more"

    # The layers in passes, as little memory asks for, are the layers at once.
    widths = {"model.layers.0.self_attn.q_proj": 64}
    monkeypatch.setattr(module, "free_memory_mib", lambda _: 1e6)
    assert [*module._passes(dict.fromkeys("abc", 64), base, tmp_path)] == [["a", "b", "c"]]
    monkeypatch.setattr(module, "free_memory_mib", lambda _: 2 * 2 * 4 * 64**2 / module.MEMORY_SHARE / 2**20)
    assert [*module._passes(dict.fromkeys("abc", 64), base, tmp_path)] == [["a", "b"], ["c"]]
    monkeypatch.setattr(module, "free_memory_mib", lambda _: 0.001)
    with pytest.raises(UsageError, match="more memory than there is"):
        [*module._passes(widths, base, tmp_path)]


def test_what_cannot_be_solved_has_no_such_arms(make_job: MakeJob, trained: Source, tmp_path: Path) -> None:
    dora = source("dora", random_adapter(make_job("dora/training", use_dora=True), 1, 0.05))
    assert regmean("tuned", dora) == ()
    assert regmean("tuned", Source("whole", trained.folder, replace(trained.card, kind="model"))) == ()
    with pytest.raises(UsageError, match="RegMean"):
        write_arm(regmean("tuned", trained)[0], tmp_path, tmp_path / "out")


def test_texts_are_what_was_trained_on_and_what_the_base_says(make_job: MakeJob, engines: tuple[HfEngine, HfEngine]) -> None:
    tokenizer = engines[0].handle.tokenizer
    rows = [Example(f"r{at}", (Message("user", f"What is {at}?"),), f"It is {at}.") for at in range(300)]
    fmt = PromptFormat("Name it.", "inline")
    found = module.texts_of_task(tokenizer, fmt, rows)
    assert module.TASK_TOKENS <= sum(map(len, found)) < module.TASK_TOKENS + module.MAX_TOKENS
    texts = [tokenizer.decode(ids) for ids in found]
    assert all("Name it." in one and "It is" in one for one in texts)
    assert found == module.texts_of_task(tokenizer, fmt, rows[::-1]), "the order in which rows come says nothing"
    general = module.texts_in_general(tokenizer, [Replay("Say hello.", "Hello there.", True)])
    assert "Hello there." in tokenizer.decode(general[-1])
    assert len(general) == len(module.general_texts()) + 1
