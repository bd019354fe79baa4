"""A decoder layer in one function gives the numbers of transformers and peft, and steps aside where it is not known to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from tests.rows_alike import padded, rows
from trainer import prefix
from trainer.fused import answer_loss, fuse_lora, head_loss
from trainer.fused_layer import fuse_layers
from trainer.prefix import Layout, collator, share_prefix

SHAPE = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def lora_model(family: type, *, modules: Any = "all-linear", ranks: dict[str, int] | None = None, **shape: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family(**SHAPE, **shape, attn_implementation="eager"))
    for name, weight in model.named_parameters():
        # Biases and norms begin as zeros and ones, which would hide whether they are there.
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(weight, 1.0, 0.5)
    # A scaling that is no power of two, and differs between ranks.
    lora = LoraConfig(r=4, lora_alpha=12, target_modules=modules, init_lora_weights=False, rank_pattern=ranks or {})
    return get_peft_model(model, lora)


def laid_out(model: Any) -> tuple[Layout, dict[str, Any]]:
    layout, batch = share_prefix(model.get_base_model()), collator(0)(rows())
    layout.prefix, layout.tails = batch["layout"].tolist()
    return layout, batch


def gradients(model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    model.zero_grad()
    total, count = answer_loss(model, batch)
    (total / count).backward()
    return total.detach() / count, {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("kept_keys", [512, 4])
@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config])
def test_loss_and_gradients_are_those_of_transformers_and_peft(
    family: type, kept_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "KEPT_KEYS", kept_keys)
    ranks = {"k_proj": 2, "up_proj": 6}
    expected, wanted = gradients(lora_model(family, ranks=ranks), padded(rows()))
    model = lora_model(family, ranks=ranks)
    layout, batch = laid_out(model)
    assert fuse_layers(model, layout) == 2
    loss, found = gradients(model, batch)
    torch.testing.assert_close(loss, expected)
    assert found.keys() == wanted.keys()
    assert len(found) == 2 * 7 * 2
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=5e-6)


def test_recomputed_activations_give_the_same_gradients() -> None:
    model = lora_model(LlamaConfig)
    layout, batch = laid_out(model)
    fuse_layers(model, layout)
    expected, wanted = gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, found = gradients(model.train(), batch)
    assert torch.equal(loss, expected)
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_two_forward_passes_before_one_backward_add_up() -> None:
    model = lora_model(LlamaConfig)
    layout, batch = laid_out(model)
    fuse_layers(model, layout)
    _, once = gradients(model, batch)
    once = {name: one.clone() for name, one in once.items()}
    model.zero_grad()
    losses = [total / count for total, count in (answer_loss(model, batch) for _ in range(2))]
    sum(losses).backward()
    for name, one in model.named_parameters():
        if one.grad is not None:
            torch.testing.assert_close(one.grad, 2 * once[name])


def test_asking_sees_the_adapter_and_the_base_as_before() -> None:
    plain, model = lora_model(LlamaConfig).eval(), lora_model(LlamaConfig).eval()
    layout, _ = laid_out(model)
    fuse_lora(model)
    fuse_layers(model, layout)
    model.get_base_model().set_attn_implementation("sdpa")
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain(input_ids=ids).logits)
        assert torch.equal(
            model.generate(input_ids=ids, max_new_tokens=6, do_sample=False),
            plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False),
        )
        with model.disable_adapter(), plain.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain(input_ids=ids).logits)


def test_the_base_alone_is_asked_in_the_layout_of_training_too() -> None:
    model = lora_model(LlamaConfig)
    layout, batch = laid_out(model)
    fuse_lora(model)
    fuse_layers(model, layout)
    base = lora_model(LlamaConfig)
    with torch.no_grad(), model.disable_adapter(), base.disable_adapter():
        torch.testing.assert_close(answer_loss(model, batch), answer_loss(base, padded(rows())))


def test_weights_stay_what_they_were() -> None:
    before, model = lora_model(Qwen2Config).state_dict(), lora_model(Qwen2Config)
    fuse_layers(model, Layout())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_layers_with_more_in_them_keep_their_own_forward() -> None:
    # Qwen3 norms its queries and keys.
    assert fuse_layers(lora_model(Qwen3Config, head_dim=8), Layout()) == 0
    assert fuse_layers(lora_model(LlamaConfig, modules=["q_proj", "v_proj"]), Layout()) == 0
    assert fuse_layers(lora_model(LlamaConfig, hidden_act="gelu"), Layout()) == 0


@pytest.mark.parametrize("head_bytes", [2**26, 4 * 40 * 3])
def test_the_head_s_loss_is_cross_entropy_however_it_is_cut(head_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.fused.HEAD_BYTES", head_bytes)
    torch.manual_seed(4)
    hidden, weight, labels = torch.randn(7, 16), torch.randn(40, 16), torch.randint(0, 40, (7,))
    # A row that is as good as sure, and wrong: chances far under e^-60 beside it.
    hidden[3] *= 60
    one, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(one @ weight.t(), labels, reduction="sum")
    found = head_loss().apply(other, weight, labels)
    expected.backward()
    (2 * found).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other.grad, 2 * one.grad, rtol=1e-4, atol=1e-5)
