"""The model that a recipe trains: the base in its dtype, and the part of it that learns."""

from __future__ import annotations

import functools
from typing import Any

from trainer.job import TrainingJob
from trainer.quantised import check_quantiser, keep_trainable, quantisation
from trainer.recipe import Recipe
from trainer.targets import check_targets

# On a processor, torch's SDPA is slower backward than plain attention up to about this many tokens a row (measured).
SHORT_ROW = 512


def base_model(job: TrainingJob, device: str, longest: int) -> Any:
    """The weights that training begins with, for rows of up to `longest` tokens: frozen under an adapter, in 4 bits where the recipe
    says so, or in fp32 to learn themselves.

    Raises AdvisorError before anything is loaded where no quantiser works, or where the recipe's target modules are not there.
    """
    import torch
    from transformers import AutoModelForCausalLM

    recipe = job.recipe
    check_quantiser(recipe, device)
    check_targets(recipe, job.model_folder)
    settings = {"quantization_config": quantisation(job.dtype), "device_map": {"": device}} if recipe.load_in_4bit else {}
    model = AutoModelForCausalLM.from_pretrained(
        job.model_folder,
        # What learns is held in fp32: a step in bf16, which keeps 8 bits, is often rounded away.
        dtype=getattr(torch, job.dtype if recipe.use_peft else "float32"),
        attn_implementation="eager" if device == "cpu" and longest <= SHORT_ROW else "sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        **settings,
    )
    if recipe.load_in_4bit:
        keep_trainable(model)
        return model
    if not recipe.use_peft and job.dtype == "bfloat16":
        run_in_bf16(model, device)
    return model.to(device)


def run_in_bf16(model: Any, device: str) -> None:
    """Have the products of a model in fp32 made in bf16 (autocast); its weights, their gradients and norms stay fp32.

    Its last hidden states are given in bf16, as autocast would hand them to the head.
    """
    import torch

    whole, below = model.forward, model.base_model.forward

    @functools.wraps(whole)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, torch.bfloat16):
            return whole(*args, **kwargs)

    @functools.wraps(below)
    def hidden(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, torch.bfloat16):
            out = below(*args, **kwargs)
        out.last_hidden_state = out.last_hidden_state.bfloat16()
        return out

    model.forward, model.base_model.forward = forward, hidden


def peft_config(recipe: Recipe, **more: Any) -> Any:
    """What peft puts on the frozen base (its weights are fp32), with `more` settings of its own; None where all weights learn."""
    if not recipe.use_peft:
        return None
    from peft import LoraConfig

    modules = recipe.lora_target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        use_dora=recipe.use_dora,
        use_rslora=recipe.use_rslora,
        target_modules=modules if isinstance(modules, str) else list(modules),
        **more,
    )


def learn_in_fp32(model: Any) -> None:
    """What learns, and so its gradient and the optimiser's moments, in fp32: trl puts the adapter of a 4-bit base into bf16."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
