"""The fused passes give the numbers of peft and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import rescale_adapter_scale
from transformers import AutoModelForCausalLM

from trainer.fused import answer_loss, fuse_lora


def lora_model(folder: Path, **lora: Any) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    for name, value in lora.items():
        setattr(config, name, value)
    return get_peft_model(model, config)


@pytest.fixture
def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 90, (3, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :8] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: Any) -> dict[str, Any]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def test_loss_and_gradients_are_those_of_peft_and_torch(tiny_model: Path, batch: dict[str, Any]) -> None:
    plain, fused = lora_model(tiny_model), lora_model(tiny_model)
    assert fuse_lora(fused) == 2 * 7
    expected = plain(**batch).loss
    expected.backward()
    total, count = answer_loss(fused, batch)
    loss = total / count
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(fused)[name], gradient, rtol=1e-4, atol=1e-6)


def test_layers_that_are_not_plain_lora_keep_their_own_forward(tiny_model: Path) -> None:
    assert fuse_lora(lora_model(tiny_model, lora_dropout=0.1)) == 0
    assert fuse_lora(lora_model(tiny_model, use_dora=True)) == 0


def test_an_adapter_at_scale_zero_is_the_base(tiny_model: Path, batch: dict[str, Any]) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = lora_model(tiny_model)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        expected = base(**inputs).logits
        assert not torch.equal(model(**inputs).logits, expected)
        with rescale_adapter_scale(model, 0):
            assert torch.equal(model(**inputs).logits, expected)
