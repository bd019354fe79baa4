"""How long a training will take, how much memory it needs and how much it computes, said beforehand from a formula.

`calibrate.py` runs a few real steps of the same job, and `calibrated` puts what they showed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp

from evals.engines.machine import Machine
from trainer.footprint import Footprint
from trainer.recipe import Recipe
from trainer.work import Work

MIB = 2**20
# Share of the weights that an adapter of r = 16 on all linear layers has, where the model is not looked at.
ADAPTER_SHARE = 0.015
# Measured share of the machine's own matrix-product rate that a training step of small models reaches (in fp32 the rate that is measured
# for the machine is of products smaller than those of a batch).
EFFICIENCY = {"bfloat16": 0.46, "float32": 1.2}
# What a step takes beside its tokens, and a training beside its steps: starting Python and the libraries, reading the weights.
STEP_SECONDS, START_SECONDS, READ_BYTES_PER_SECOND = 0.3, 6.3, 2.5e8
# DoRA normalises each weight anew in every pass; recomputing goes through the layers' own code, not through one function a layer; and
# attention's products are so many times slower than those of weights (fitted to the same twenty recipes).
DORA_FACTOR, RECOMPUTED_FACTOR, ATTENTION_FACTOR = 5.5, 2.2, 12.0
# Updating one trained weight: gradient norm, both moments, the weight, and where all learn its copy in bf16.
UPDATE_SECONDS = 6.8e-9
# Resident memory of the training process on a processor, beside weights and activations: the libraries alone, and once a trainer has run
# (fitted to twenty recipes of the demo model, docs/benchmarks.md). It grows with the steps, towards so many MiB, as batches of ever other
# shapes are met: by the libraries' caches of them, and by room that the allocator loses.
LIBRARIES_MIB, RUNNING_MIB, GROWTH_MIB, GROWTH_STEPS = 400.0, 713.0, 350.0, 60.0
# A GPU's allocator counts no libraries and loses little.
CUDA_FACTOR = 1.15


@dataclass(frozen=True)
class Estimate:
    """`tokens` over all passes; `seconds` with loading; `memory_mib` of the training process at its peak (None where not asked for).

    `flops` are the operations of all steps; `tokens_per_second` is the rate that `seconds` rests on: of the formula, or of real
    steps where `calibrated`.
    """

    steps: int
    tokens: int
    seconds: float
    memory_mib: float | None
    flops: float = 0.0
    tokens_per_second: float = 0.0
    calibrated: bool = False

    def money(self, gpu_hour: float | None) -> float | None:
        """At the price of an hour of this machine; None where none is stated."""
        return None if gpu_hour is None else self.seconds / 3600 * gpu_hour


@dataclass(frozen=True)
class Trial:
    """What so many real steps showed: tokens a second without the first step, seconds before the first step, MiB at the peak."""

    rate: float
    loading: float
    memory_mib: float
    steps: int = 6


def flops_per_token(recipe: Recipe, parameters: int, trained: int) -> float:
    """2 operations a weight forward, 2 for the gradient of its input, 2 for its own where it is trained (Kaplan et al. 2020).

    With an adapter 4 * parameters + 6 * trained, without one 6 * parameters. Recomputed activations are another forward pass, and so is
    DPO's reference. Attention is counted apart (`attention_seconds`). Logits are counted at every token, though few are made.
    """
    again = recipe.gradient_checkpointing + (recipe.method == "dpo")
    plain = 4 * parameters + 6 * trained if recipe.use_peft else 6 * parameters
    return plain + 2.0 * parameters * again


def training_rate(machine: Machine, recipe: Recipe, parameters: int, trained: int, dtype: str) -> float:
    """Tokens a second that this machine is expected to train."""
    gflops = machine.bf16_gflops if dtype == "bfloat16" else machine.fp32_gflops
    slower = (DORA_FACTOR if recipe.use_dora else 1.0) * (RECOMPUTED_FACTOR if recipe.gradient_checkpointing else 1.0)
    return gflops * 1e9 * EFFICIENCY.get(dtype, 0.3) / (flops_per_token(recipe, parameters, trained) * slower)


def attention_seconds(machine: Machine, recipe: Recipe, dtype: str) -> float:
    """Of one number of the hidden state of one token against one other token: 4 operations forward, twice that backward."""
    gflops = machine.bf16_gflops if dtype == "bfloat16" else machine.fp32_gflops
    return 12.0 * ATTENTION_FACTOR * (RECOMPUTED_FACTOR if recipe.gradient_checkpointing else 1.0) / (gflops * 1e9)


def adapter_weights(recipe: Recipe, parameters: int) -> int:
    """About how many weights are trained, without looking at the model."""
    return round(ADAPTER_SHARE * parameters * recipe.lora_r / 16) if recipe.use_peft else parameters


def estimate(
    recipe: Recipe, work: Work, parameters: int, machine: Machine, dtype: str, size: Footprint | None = None
) -> Estimate:
    """What the recipe will take for these rows: memory only where the footprint is given.

    seconds = loading + passes forward and back * STEP_SECONDS + steps * trained weights * UPDATE_SECONDS + tokens / rate + attention,
    and dev's tokens at a third of a training token's price.
    """
    trained = size.trained if size else adapter_weights(recipe, parameters)
    rate = training_rate(machine, recipe, parameters, trained, dtype)
    rows = len(work.rows)
    steps = recipe.total_steps(rows)
    tokens = round(work.tokens * recipe.passes(rows))
    loading = START_SECONDS + 4 * parameters / READ_BYTES_PER_SECOND
    step = recipe.gradient_accumulation_steps * STEP_SECONDS + trained * UPDATE_SECONDS
    pairs = recipe.passes(rows) * sum(row.tokens * row.width for row in work.rows) * (size.span if size else 0)
    attention = pairs * attention_seconds(machine, recipe, dtype)
    seconds = loading + steps * step + tokens / rate + attention + sum(work.dev) / (3 * rate)
    memory = peak_mib(size, machine.device, steps) if size else None
    return Estimate(steps, tokens, seconds, memory, tokens * flops_per_token(recipe, parameters, trained), tokens / seconds)


def growth_mib(steps: int) -> float:
    """What the process has grown by after so many steps, on a processor."""
    return GROWTH_MIB * (1.0 - exp(-steps / GROWTH_STEPS))


def peak_mib(size: Footprint, device: str, steps: int) -> float:
    """Peak of the training process on a processor (resident), or of what is allocated on a GPU.

    Reading the weights may be the peak of a small batch: the file is mapped while its copy is made.
    """
    held = (size.weights + size.learning + size.logits) / MIB
    if device != "cpu":
        return held + CUDA_FACTOR * size.kept / MIB
    reading = LIBRARIES_MIB + (size.file + size.weights) / MIB
    return max(reading, RUNNING_MIB + growth_mib(steps) + held + size.kept / MIB)


def calibrated(found: Estimate, trial: Trial, dev_tokens: int = 0) -> Estimate:
    """The estimate with what real steps of the same job showed."""
    seconds = trial.loading + found.tokens / trial.rate + dev_tokens / (3 * trial.rate)
    memory = trial.memory_mib + max(0.0, growth_mib(found.steps) - growth_mib(trial.steps))
    return replace(found, seconds=seconds, memory_mib=memory, tokens_per_second=trial.rate, calibrated=True)


def scaled(seconds: float, formula: Estimate, measured: Estimate) -> float:
    """Another training's seconds by the formula, as much faster or slower as this one's were."""
    return seconds * measured.seconds / max(formula.seconds, 1e-9)
