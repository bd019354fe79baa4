"""Recipes: defaults by size, overrides by the user, and every mistake named at once."""

from __future__ import annotations

import pytest

from evals.engines.machine import Machine
from evals.errors import ProblemsError
from trainer.estimate import estimate, training_rate
from trainer.recipe import Recipe, recommended_recipe

SMALL = 134_000_000


def recommend(**overrides: object) -> Recipe:
    return recommended_recipe(300, SMALL, overrides=overrides, where="task.yaml", seed=7)


def test_overrides_win_and_the_seed_is_the_tasks() -> None:
    recipe = recommend(learning_rate="2e-4", num_train_epochs=5, lora_target_modules=["q_proj"])
    assert (recipe.learning_rate, recipe.num_train_epochs, recipe.seed) == (2e-4, 5.0, 7)
    assert recipe.lora_target_modules == ("q_proj",)


def test_larger_models_and_data_are_treated_more_gently() -> None:
    large = recommended_recipe(5000, 70_000_000_000, overrides={}, where="task.yaml", seed=0)
    assert large.learning_rate < recommend().learning_rate
    assert large.num_train_epochs < recommend().num_train_epochs


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ProblemsError) as caught:
        recommend(lerning_rate=1e-4, lora_r="many", method="lorra", lora_dropout=1.5, save_steps=True, max_length=0)
    found = {problem.key: problem.message for problem in caught.value.problems}
    assert set(found) == {f"train.{key}" for key in caught_keys()}
    assert "did you mean 'learning_rate'" in found["train.lerning_rate"]
    assert "did you mean 'lora'" in found["train.method"]
    assert all(problem.file == "task.yaml" for problem in caught.value.problems)


def caught_keys() -> list[str]:
    return ["lerning_rate", "lora_r", "method", "lora_dropout", "save_steps", "max_length"]


def test_steps_are_counted_as_the_trainer_counts_them() -> None:
    recipe = Recipe(num_train_epochs=2.5, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert recipe.total_steps(300) == 48  # 38 batches, 19 steps an epoch, 47.5 rounded up


def test_the_estimate_grows_with_epochs_and_shrinks_with_the_rate() -> None:
    machine = Machine("cpu", 2, "2", "cpu", 2, 320.0, 2000.0, 20.0)
    rate = training_rate(machine, "bfloat16", SMALL)
    assert rate > training_rate(machine, "float32", SMALL)
    short = estimate(Recipe(num_train_epochs=1), SMALL, 32_000, rate, rows=300, dtype="bfloat16")
    long = estimate(Recipe(num_train_epochs=4), SMALL, 32_000, rate, rows=300, dtype="bfloat16")
    assert (short.steps, long.steps, long.tokens) == (38, 152, 128_000)
    assert long.seconds > short.seconds
    assert 1_000 < long.memory_mib < 6_000
