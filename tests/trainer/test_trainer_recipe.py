"""Recipes: defaults by size, overrides by the user, and every mistake named at once."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from evals.errors import ProblemsError
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


@pytest.mark.parametrize(
    ("short", "settings", "title"),
    [
        ("lora", {}, "SFT, LoRA"),
        ("qlora", {"load_in_4bit": True}, "SFT, QLoRA"),
        ("dora", {"use_dora": True}, "SFT, DoRA"),
        ("rslora", {"use_rslora": True}, "SFT, LoRA with rank-stabilised scaling"),
        ("full", {"use_peft": False, "learning_rate": 5e-5}, "SFT, all weights"),
    ],
)
def test_a_kind_of_adapter_for_a_method_means_sft_with_it(short: str, settings: dict[str, Any], title: str) -> None:
    recipe = recommend(method=short)
    assert recipe == replace(recommend(), **settings)
    assert recipe.title == title


def test_each_method_has_its_own_defaults() -> None:
    dpo, raft = recommend(method="dpo"), recommend(method="raft")
    assert (dpo.learning_rate, dpo.num_train_epochs, dpo.replay_share) == (5e-5, 1.0, 0.0)
    assert (raft.max_length, raft.learning_rate, raft.replay_share) == (2048, recommend().learning_rate, 0.05)
    full = recommended_recipe(300, 7_000_000_000, overrides={"use_peft": False}, where="t", seed=0)
    assert full.learning_rate == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("settings", "key", "said"),
    [
        ({"beta": 0.2}, "beta", "is for method dpo"),
        ({"method": "dpo", "gold_share": 0.5}, "gold_share", "is for method raft"),
        ({"use_peft": False, "use_dora": True}, "use_dora", "trains all weights"),
        ({"method": "qlora", "use_peft": False}, "load_in_4bit", "trains all weights"),
        ({"method": "raft", "gold_share": 1.5}, "gold_share", "at most 1"),
        ({"use_dora": 1}, "use_dora", "must be true or false"),
    ],
)
def test_settings_that_would_be_ignored_or_contradict_each_other_are_refused(
    settings: dict[str, Any], key: str, said: str
) -> None:
    with pytest.raises(ProblemsError) as caught:
        recommend(**settings)
    assert [one.key for one in caught.value.problems] == [f"train.{key}"]
    assert said in caught.value.problems[0].message


def test_a_recipe_comes_back_from_its_record() -> None:
    recipe = recommend(lora_target_modules=["q_proj", "v_proj"], method="dora")
    assert Recipe.of({"schema_version": 1, **json.loads(json.dumps(asdict(recipe)))}) == recipe
