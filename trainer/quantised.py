"""QLoRA's base (Dettmers et al. 2023): frozen linear layers in NF4, four bits a weight, under an adapter that learns in fp32.

bitsandbytes holds and multiplies them, on CUDA and on a processor. What is here is what it does not see to itself: whether it works on
this machine, asked before anything is loaded, and that on a processor it goes on training right after an evaluation.
"""

from __future__ import annotations

import importlib
import logging
import sys
from functools import cache
from typing import Any

from evals.errors import AdvisorError
from trainer.recipe import Recipe

# A weight in NF4 lies within so much of what it was, relative to its block's largest (the widest gap of the sixteen values is 0.304).
NF4_ERROR = 0.16


def check_quantiser(recipe: Recipe, device: str) -> None:
    """Raises AdvisorError where the recipe wants a base in 4 bits and this machine has no quantiser that works; loads no model."""
    if recipe.load_in_4bit and (reason := unusable(device)):
        raise AdvisorError(
            f"a base in 4 bits (`load_in_4bit`) cannot be had on this machine: {reason}",
            where=f"device {device}",
            do="set `train: {method: lora}`, which learns the same adapter on the base as it is; or install bitsandbytes for this "
            "machine: `pip install 'finetune-advisor[qlora]'`.",
        )


def this_device() -> str:
    """Where the worker will train."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def unusable(device: str) -> str:
    """Why no weight can be held in NF4 on this device; empty where one could, tried on one matrix."""
    import torch

    try:
        _import_quietly()
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    except ImportError:
        return "bitsandbytes is not installed"
    except Exception as error:  # its native library may fail in any way that a loader can
        return f"bitsandbytes does not load ({_first_line(error)})"
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        off = float((dequantize_4bit(packed, state) - weight).abs().max() / weight.abs().max())
    except Exception as failure:
        return f"bitsandbytes does not work here ({_first_line(failure)})"
    return "" if off < NF4_ERROR else f"bitsandbytes gives wrong weights here (off by {off:.2f} of the largest)"


def _import_quietly() -> None:
    """bitsandbytes without what it would fetch: on a processor it asks the Hub for compiled code where `kernels` is installed, and
    warns where it is not. Its own code is enough here."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    there = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if there is not None:
            sys.modules["kernels"] = there


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def quantisation(dtype: str) -> Any:
    """transformers' settings: NF4, its scales quantised once more, products in `dtype` (Dettmers et al. 2023, sections 3.1 and 3.2)."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def keep_trainable(model: Any) -> int:
    """Keep every 4-bit layer in the form that training reads; returns how many there are. Call it before any forward pass.

    On a processor with bf16 units, a layer that is asked without gradients (an evaluation in mid-training) repacks its weight for
    inference. Training then reads the packed bytes as if they were not, and goes on with other weights, without any error.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [one for one in model.modules() if isinstance(one, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)
