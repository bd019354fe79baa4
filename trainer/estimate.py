"""How long a training will take and how much memory it needs, said beforehand from a formula."""

from __future__ import annotations

from dataclasses import dataclass

from evals.engines.machine import Machine
from trainer.recipe import Recipe

# A frozen weight costs 2 operations a token forward and 2 for the gradient of its input; none for its own gradient
# (Kaplan et al. 2020 count 6 for full training). Nothing is recomputed: activation checkpointing is off.
FLOPS_PER_WEIGHT = 4
# Measured share of the machine's own matrix-product rate that a training step of small models reaches.
EFFICIENCY = {"bfloat16": 0.20, "float32": 0.55}
LOADING_SECONDS = 12.0


@dataclass(frozen=True)
class Estimate:
    """`tokens` over all epochs; `seconds` with loading; `memory_mib` of the training process at its peak."""

    steps: int
    tokens: int
    seconds: float
    memory_mib: float


def training_rate(machine: Machine, dtype: str, parameters: int) -> float:
    """Tokens a second that this machine is expected to train, for a model of so many parameters."""
    gflops = machine.bf16_gflops if dtype == "bfloat16" else machine.fp32_gflops
    return gflops * 1e9 * EFFICIENCY.get(dtype, 0.3) / (FLOPS_PER_WEIGHT * parameters)


def estimate(recipe: Recipe, parameters: int, tokens_per_epoch: int, rate: float, *, rows: int, dtype: str) -> Estimate:
    """`rate` in tokens a second: from `training_rate`, or better from a training that was measured here."""
    tokens = round(tokens_per_epoch * recipe.num_train_epochs)
    weights = parameters * (2 if dtype == "bfloat16" else 4)
    # About 1.5% of the weights are trainable at r = 16 on all layers: fp32 weight, gradient and two Adam moments.
    adapter = 0.015 * parameters * recipe.lora_r / 16 * 16
    # Activations kept for backward: about 34 values of the hidden width a layer and token (Korthikanti et al. 2022);
    # depth times width is taken as (parameters / 12)^(2/3) / 3, which holds for the usual shapes.
    longest = min(recipe.max_length, 2 * tokens_per_epoch / max(1, rows))
    activations = 34 * 2 * recipe.per_device_train_batch_size * longest * (parameters / 12) ** (2 / 3) / 3
    libraries = 900 * 2**20
    return Estimate(
        steps=recipe.total_steps(rows),
        tokens=tokens,
        seconds=LOADING_SECONDS + tokens / max(rate, 1e-9),
        memory_mib=(weights + adapter + activations + libraries) / 2**20,
    )
