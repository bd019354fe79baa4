"""Recipes: defaults by size, overrides by the user, and every mistake named at once."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
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


METHODS = ("sft", "pretraining", "raft", "rejection_sampling", "dpo")
ANSWERS = ("sft", "raft", "rejection_sampling")
# Every key of a recipe: a value that is not its default, and the methods that read it.
READ_BY: dict[str, tuple[Any, tuple[str, ...]]] = {
    "use_peft": (False, METHODS),
    "use_dora": (True, METHODS),
    "use_rslora": (True, METHODS),
    "load_in_4bit": (True, METHODS),
    "num_train_epochs": (1.5, METHODS),
    "learning_rate": (1e-3, METHODS),
    "lr_scheduler_type": ("linear", METHODS),
    "warmup_steps": (3.0, METHODS),
    "per_device_train_batch_size": (2, METHODS),
    "gradient_accumulation_steps": (2, METHODS),
    "gradient_checkpointing": (True, METHODS),
    "lora_r": (4, METHODS),
    "lora_alpha": (4, METHODS),
    "lora_dropout": (0.1, METHODS),
    "lora_target_modules": ("all-linear", METHODS),
    "max_length": (99, METHODS),
    "truncation_mode": ("keep_end", (*ANSWERS, "dpo")),
    "assistant_only_loss": (False, ANSWERS),
    "weight_decay": (0.1, METHODS),
    "adam_beta2": (0.5, METHODS),
    "max_grad_norm": (2.0, METHODS),
    "seed": (3, METHODS),
    "save_steps": (3, METHODS),
    "save_total_limit": (3, METHODS),
    "instruction": ("full", ("sft", "pretraining", "rejection_sampling", "dpo")),
    "replay_share": (0.3, (*ANSWERS, "pretraining")),
    "max_steps": (7, METHODS),
    "early_stopping_patience": (2, METHODS),
    "eval_steps": (3, METHODS),
    "metric_for_best_model": ("loss", ()),  # with early_stopping_patience alone
    "beta": (0.3, ("dpo",)),
    "loss_type": ("ipo", ("dpo",)),
    "num_generations": (2, ("rejection_sampling", "dpo")),
    "temperature": (0.5, ("rejection_sampling", "dpo")),
    "num_distractors": (2, ("raft",)),
    "gold_share": (0.5, ("raft",)),
}


def refused(**stated: Any) -> dict[str, str]:
    """The keys that are refused, and why."""
    try:
        recommend(**stated)
    except ProblemsError as error:
        return {one.key.removeprefix("train."): one.message for one in error.problems}
    return {}


@pytest.mark.parametrize("key", [field.name for field in fields(Recipe) if field.name != "method"])
@pytest.mark.parametrize("method", METHODS)
def test_a_key_is_taken_by_the_methods_that_read_it_and_refused_by_the_others(method: str, key: str) -> None:
    value, readers = READ_BY[key]
    found = refused(method=method, **{key: value})
    assert [*found] == ([] if method in readers else [key])
    assert all("leave it out" in why for why in found.values())
    assert recommend(method=method).reads(key) == (method in readers)


def test_no_row_is_longer_than_the_model_reads() -> None:
    def length(context: int, **stated: Any) -> int:
        return recommended_recipe(300, SMALL, overrides=stated, where="t", seed=0, context_length=context).max_length

    assert (length(512), length(4096), length(1500, method="raft"), length(4096, method="raft")) == (512, 1024, 1500, 2048)
    assert (length(512, max_length=512), length(4096, max_length=4096)) == (512, 4096)
    with pytest.raises(ProblemsError, match=r"513 tokens are more than this model reads \(512\): write 512 or less") as caught:
        length(512, max_length=513)
    assert [one.key for one in caught.value.problems] == ["train.max_length"]


ADAPTERS_OWN = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora", "use_rslora", "load_in_4bit")


@pytest.mark.parametrize(
    "all_weights", [{"use_peft": False}, {"method": "full"}, {"method": "dpo", "use_peft": False}], ids=str
)
def test_without_an_adapter_its_keys_are_refused(all_weights: dict[str, Any]) -> None:
    others = {key: READ_BY[key][0] for key in ("learning_rate", "max_length", "weight_decay", "gradient_checkpointing")}
    assert refused(**all_weights, **others) == {}
    for key in ADAPTERS_OWN:
        assert [*refused(**all_weights, **{key: READ_BY[key][0]})] == [key]
    # Those that are switched off say what is the case.
    assert refused(**all_weights, use_dora=False, load_in_4bit=False) == {}


def test_what_an_early_stop_and_a_schedule_need_of_each_other() -> None:
    assert "early_stopping_patience" in refused(metric_for_best_model="score")["metric_for_best_model"]
    assert [*refused(metric_for_best_model="score", early_stopping_patience=0)] == ["metric_for_best_model"]
    assert refused(metric_for_best_model="score", early_stopping_patience=1, eval_steps=3) == {}
    assert "constant_with_warmup" in refused(lr_scheduler_type="constant", warmup_steps=0.1)["warmup_steps"]
    assert refused(lr_scheduler_type="constant", warmup_steps=0) == {}
    assert refused(lr_scheduler_type="constant_with_warmup", warmup_steps=5) == {}
    # A share of nothing is none, as DPO has it.
    assert refused(method="dpo", replay_share=0) == {}


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
