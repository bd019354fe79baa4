"""What a training is said to take: by the formula, and by a few real steps of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from evals.engines.machine import Machine
from evals.engines.tokenizer import open_tokenizer
from evals.events import Event, TrainingStep
from trainer import calibrate
from trainer.calibrate import STEPS, trial, tried
from trainer.estimate import (
    EFFICIENCY,
    MIB,
    Trial,
    calibrated,
    estimate,
    flops_per_token,
    growth_mib,
    peak_mib,
    scaled,
    training_rate,
)
from trainer.footprint import Batch, Footprint, footprint
from trainer.fused import fuse_lora
from trainer.job import TrainedAdapter, TrainingJob
from trainer.model import base_model, peft_config
from trainer.recipe import Recipe, recommended_recipe
from trainer.recipe_reasons import REASONS, YOURS, reasons
from trainer.work import Row, Work, work_of

MakeJob = Callable[..., TrainingJob]
MACHINE = Machine("p", 2, "t", "cpu", 2, 300.0, 2000.0, 20.0)
RECIPE = Recipe(num_train_epochs=3, per_device_train_batch_size=8)
BATCH = Batch(4, 20, 8)
WORK = Work((Row(500, 50, 500),) * 100, 0, (500,) * 10)
SIZE = Footprint(weights=100 * MIB, file=400 * MIB, trained=10**6, learning=16e6, kept=50 * MIB, logits=10 * MIB)


def test_flops_time_and_money_follow_the_formula() -> None:
    # 4 a frozen weight and 6 a trained one; 6 where all are trained; a forward pass more for what is computed again.
    assert flops_per_token(RECIPE, 10**9, 10**7) == 4e9 + 6e7
    assert flops_per_token(replace(RECIPE, use_peft=False), 10**9, 10**9) == 6e9
    assert flops_per_token(replace(RECIPE, gradient_checkpointing=True), 10**9, 0) == 6e9
    assert flops_per_token(replace(RECIPE, method="dpo"), 10**9, 0) == 6e9
    rate = training_rate(MACHINE, RECIPE, 10**8, 0, "bfloat16")
    # A share of 2,000 GFLOP/s at 4 operations a weight and token.
    assert rate == pytest.approx(EFFICIENCY["bfloat16"] * 2000e9 / (4 * 1e8))
    found = estimate(RECIPE, WORK, 10**8, MACHINE, "bfloat16")
    assert (found.steps, found.tokens, found.memory_mib) == (39, 150_000, None)
    slower = estimate(replace(RECIPE, use_dora=True), WORK, 10**8, MACHINE, "bfloat16")
    assert slower.seconds > 2 * found.seconds
    assert found.money(2.0) == pytest.approx(found.seconds / 1800)
    assert found.money(None) is None


def test_a_cap_on_steps_caps_all_and_memory_by_its_growth() -> None:
    whole = estimate(RECIPE, WORK, 10**8, MACHINE, "float32", SIZE)
    capped = estimate(replace(RECIPE, max_steps=13), WORK, 10**8, MACHINE, "float32", SIZE)
    assert (capped.steps, capped.tokens) == (13, 50_000)
    assert capped.flops == pytest.approx(whole.flops / 3)
    assert whole.memory_mib - capped.memory_mib == pytest.approx(growth_mib(whole.steps) - growth_mib(13))
    assert growth_mib(0) == 0


def test_real_steps_take_the_place_of_the_formula() -> None:
    formula = estimate(RECIPE, WORK, 10**8, MACHINE, "float32", SIZE)
    found = calibrated(formula, Trial(250.0, 7.0, 1234.0), dev_tokens=3000)
    assert found.seconds == pytest.approx(7 + 150_000 / 250 + 3000 / 750)
    assert found.calibrated
    assert found.memory_mib == pytest.approx(1234.0 + growth_mib(formula.steps) - growth_mib(6))
    assert replace(found, seconds=0, memory_mib=0, tokens_per_second=0, calibrated=False) == replace(
        formula, seconds=0, memory_mib=0, tokens_per_second=0
    )
    assert scaled(10.0, formula, found) == pytest.approx(10 * found.seconds / formula.seconds)


def test_the_peak_of_a_small_batch_is_reading_the_weights() -> None:
    small = replace(SIZE, kept=0.0, logits=0.0, learning=0.0)
    assert peak_mib(small, "cpu", 9) == peak_mib(replace(small, kept=MIB), "cpu", 9)
    assert peak_mib(replace(small, kept=1000 * MIB), "cpu", 9) > peak_mib(small, "cpu", 9) + 900
    # A GPU counts neither libraries nor what is read on the way.
    assert peak_mib(small, "cuda", 9) == 100


def test_work_is_counted_on_the_rows_as_they_are_encoded(make_job: MakeJob) -> None:
    job = make_job(rows=12)
    tokenizer, _ = open_tokenizer(job.model_folder)
    work = work_of(tokenizer, job.prompt_format, job.recipe, job.train, job.dev)
    # A token a character in this model: the answer is a letter and the mark of the end.
    assert {row.labels for row in work.rows} == {2}
    assert max(work.rows).tokens - min(work.rows).tokens == len("green 10") - len("red 0")
    assert len(work.dev) == len(job.dev)
    longest = work.longest(5)
    assert (longest.rows, longest.length, longest.labels) == (5, max(work.rows).width, 10)
    assert 0 < longest.prefix < min(work.rows).width


def kept_by_a_real_pass(job: TrainingJob, batch: Batch) -> int:
    """Bytes of all storages that autograd keeps of a forward pass with real weights, the weights' own apart."""
    import torch
    from peft import get_peft_model

    model = get_peft_model(base_model(job, "cpu", batch.length), peft_config(job.recipe)).train()
    fuse_lora(model)
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    held: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros((batch.rows, batch.length), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.get_base_model().base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert out is not None
    return sum(one.untyped_storage().nbytes() for one in held.values())


@pytest.mark.parametrize("recipe", [{}, {"lora_r": 32}, {"lora_target_modules": ("q_proj",)}], ids=["plain", "rank", "modules"])
def test_what_is_kept_is_what_a_real_pass_keeps(make_job: MakeJob, recipe: dict[str, Any]) -> None:
    job, batch = make_job(**recipe), Batch(3, 17, 6)
    found = footprint(job.model_folder, job.recipe, batch, job.dtype, "cpu")
    # Masks and positions, a few hundred bytes, are the same for all layers and counted once or twice.
    assert found.kept == pytest.approx(kept_by_a_real_pass(job, batch), rel=0.02)


def test_the_footprint_counts_weights_and_grows_with_batch_length_and_rank(make_job: MakeJob) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    job = make_job()
    sizes = [one.numel() for one in AutoModelForCausalLM.from_pretrained(job.model_folder, dtype=torch.float32).parameters()]

    def of(batch: Batch = BATCH, dtype: str = "float32", **changes: Any) -> Footprint:
        return footprint(job.model_folder, replace(job.recipe, **changes), batch, dtype, "cpu")

    plain = of()
    assert plain.weights == 4 * sum(sizes)
    assert of(dtype="bfloat16").weights == 2 * sum(sizes)
    assert (of(use_peft=False).trained, of(use_peft=False).weights) == (sum(sizes), 0)
    # A and B of each of seven linear layers: their widths times the rank.
    layers = [
        one for one in AutoModelForCausalLM.from_pretrained(job.model_folder).modules() if isinstance(one, torch.nn.Linear)
    ]
    linear = [one for one in layers if one.out_features != plain.logits / (8 * 8)]
    assert plain.trained == job.recipe.lora_r * sum(one.in_features + one.out_features for one in linear)
    assert plain.learning == 16 * plain.trained
    assert of(lora_r=32).trained == 8 * plain.trained
    for larger in (Batch(8, 20, 8), Batch(4, 40, 8)):
        assert of(larger).kept > 1.9 * plain.kept
    assert of(Batch(4, 20, 16)).logits == 2 * plain.logits
    # Of a beginning that all rows share, one copy.
    assert of(Batch(4, 40, 8, 20)).kept < 0.8 * of(Batch(4, 40, 8)).kept
    assert of(gradient_checkpointing=True).kept < plain.kept


def test_every_setting_has_its_reason() -> None:
    assert set(REASONS) == {field.name for field in fields(Recipe)}
    stated = {"method": "qlora", "lora_r": 8}
    recipe = recommended_recipe(300, 10**9, overrides=stated, where="t", seed=0)
    told = reasons(recipe, stated)
    assert {name for name, why in told.items() if why == YOURS} == {"method", "lora_r", "load_in_4bit", "use_peft"}
    # What the method does not read is not shown.
    assert not {"beta", "gold_share", "metric_for_best_model"} & set(told)
    assert "beta" in reasons(replace(recipe, method="dpo"), {})
    assert "lora_r" not in reasons(replace(recipe, use_peft=False), {})


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "share"), [(200, 4, 2, 0.2), (200, 8, 1, 0.0), (3, 8, 1, 0.5), (1, 1, 1, 0.0)]
)
def test_a_trial_is_a_few_steps_of_the_job_however_few_its_rows(
    make_job: MakeJob, tmp_path: Path, rows: int, batch: int, accumulation: int, share: float
) -> None:
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "replay_share": share}
    job = make_job(rows=rows, **settings, early_stopping_patience=2)
    cut = trial(job, tmp_path / "trial")
    assert cut.recipe.total_steps(len(cut.train) + len(cut.replay)) == STEPS
    assert set(cut.train) <= set(job.train)
    assert len(cut.train) + len(cut.replay) <= STEPS * batch * accumulation
    assert len(cut.replay) == round(STEPS * batch * accumulation * share)
    assert (cut.dev, cut.recipe.early_stopping_patience, cut.folder) == ((), 0, tmp_path / "trial")
    assert (cut.recipe.lora_r, cut.recipe.max_length, cut.dtype) == (job.recipe.lora_r, job.recipe.max_length, job.dtype)
    assert trial(job, tmp_path / "trial") == cut


def test_a_trial_has_the_longest_rows(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(rows=200, per_device_train_batch_size=2)
    long = replace(job.train[77], target=job.train[77].target * 30)
    job = replace(job, train=(*job.train[:77], long, *job.train[78:]))
    assert long in trial(job, tmp_path / "trial").train


def test_the_rate_leaves_out_the_slow_first_step(make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading of 7 s, a first step of 10 s with 80 tokens, then four of 2 s with 100 each: 50 tokens a second, where the mean is 26.7."""
    clock = [0.0]
    monkeypatch.setattr(calibrate.time, "monotonic", lambda: clock[0])

    def train(job: TrainingJob, on_event: Callable[[Event], None]) -> TrainedAdapter:
        tokens, began = 0, clock[0] + 7
        clock[0] = began
        for step in range(1, 6):
            clock[0] += 10 if step == 1 else 2
            tokens += 80 if step == 1 else 100
            passed = clock[0] - began
            on_event(TrainingStep(job.purpose, step, 5, 1.0, None, 0.1, tokens / passed, (5 - step) * passed / step, 100.0))
        seconds = clock[0] - began
        on_event(TrainingStep(job.purpose, 5, 5, 1.0, None, 0.0, tokens / seconds, 0.0, 100.0))
        return TrainedAdapter(job.folder, "", 5, tokens, seconds, tokens / seconds, 1.0, None, 123.0, 1, 0, False)

    monkeypatch.setattr(calibrate, "train", train)
    found = tried(make_job(), tmp_path / "trial", lambda event: None)
    assert (found.rate, found.loading, found.memory_mib) == (pytest.approx(50.0), pytest.approx(7.0), 123.0)


def test_real_steps_give_a_rate_in_the_trial_s_own_folder(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(rows=24, replay_share=0.2)
    heard: list[Event] = []
    found = tried(job, tmp_path / "trial", heard.append)
    steps = [one for one in heard if isinstance(one, TrainingStep)]
    assert {one.step for one in steps} == set(range(1, STEPS + 1))
    # Of the same order as the means that the worker tells, which hold the first step too.
    assert 0.5 * steps[3].tokens_per_second < found.rate < 50 * steps[3].tokens_per_second
    assert found.loading > 1
    assert found.memory_mib > 100
    assert not job.folder.exists()
