"""The model in training as an engine that answers: the same weights under modules of its own, so that asking changes nothing."""

from __future__ import annotations

import copy
from typing import Any

from evals.engines.budget import Budget
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.events import ignore
from trainer.job import TrainingJob
from trainer.model import run_in_bf16
from trainer.template import prepared

# Stated, not measured: what is measured may differ from run to run, and rows that are asked together move the last bits of bf16.
BUDGET = Budget(4096, 32)


class Twin(ModelHandle):
    """The handle of a model that is being trained. Its parameters are the model's own, and so are always those of now."""

    def __init__(self, job: TrainingJob, model: Any, device: str) -> None:
        # What it would note (how its prompts are read) is nothing to tell in mid-training.
        super().__init__(str(job.model_folder), job.dtype, ignore)
        self._device = device
        self.tokenizer = prepared(job).tokenizer
        twin = twin_of(model)
        if not job.recipe.use_peft and job.dtype == "bfloat16":
            run_in_bf16(twin, device)
        if hasattr(twin, "peft_config"):
            self._wrapped["peft"] = twin
        self.base = twin.get_base_model() if hasattr(twin, "peft_config") else twin

    @property
    def device(self) -> str:
        return self._device

    @property
    def budget(self) -> Budget:
        return BUDGET


def twin_of(model: Any) -> Any:
    """A copy of the model in evaluation mode whose parameters are the model's own tensors, without what training has put on it:
    fused forwards, hooks, and an attention that knows only training's batches."""
    twin = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for module in twin.modules():
        module.__dict__.pop("forward", None)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    base = twin.get_base_model() if hasattr(twin, "peft_config") else twin
    base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    return twin.eval()


def engine_of(job: TrainingJob, model: Any, device: str) -> HfEngine:
    """The model in training, to be asked like any other, greedily and with shared prefixes."""
    return HfEngine(Twin(job, model, device), called=f"{job.model_folder.name} in training")
