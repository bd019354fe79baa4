"""The shared beginning is exact: loss and gradients are those of ordinary padded batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.rows_alike import PREFIX, beginning, padded, rows
from trainer.data import IGNORED
from trainer.fused import answer_loss
from trainer.prefix import collator, common_prefix, share_prefix, supports


def lora_model(folder: Path) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, lora)


@pytest.mark.parametrize("prefix", [0, 1, len(PREFIX)])
def test_loss_and_gradients_are_those_of_a_padded_batch(tiny_model: Path, prefix: int) -> None:
    plain, shared = lora_model(tiny_model), lora_model(tiny_model)
    expected, count = answer_loss(plain, padded(beginning(prefix)))
    (expected / count).backward()
    assert supports(shared.get_base_model())
    layout = share_prefix(shared.get_base_model())
    batch = collator(0)(beginning(prefix))
    assert batch["layout"].tolist() == [prefix, 3]
    layout.prefix, layout.tails = batch["layout"].tolist()
    loss, counted = answer_loss(shared, batch)
    (loss / counted).backward()
    assert counted == count
    torch.testing.assert_close(loss, expected)
    wanted = dict(plain.named_parameters())
    for name, weight in shared.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, wanted[name].grad, rtol=1e-4, atol=1e-5)


def test_the_prefix_ends_before_the_last_prompt_token() -> None:
    batch = rows()
    assert common_prefix(batch) == len(PREFIX)
    same = [{"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]}] * 2
    assert common_prefix(same) == 1


def test_tokens_are_counted_as_if_every_row_stood_alone() -> None:
    batch = collator(0)(rows())
    assert int(batch["tokens"]) == sum(len(row["input_ids"]) for row in rows())
    assert batch["input_ids"].shape == (1, len(PREFIX) + 3 * 12)
