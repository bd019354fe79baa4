"""A whole decoder layer with LoRA on all its linear layers, forward and backward in one autograd function each.

It is the same arithmetic as transformers' layer with peft's LoRA (the tests check losses and gradients), with less around it: projections
that read the same input are one product, their LoRA products too; element-wise steps write where they read; nothing is saved that
the backward pass does not need. Layers it does not know keep their own forward, with `fused.py`'s LoRA.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from trainer.fused import is_plain_lora
from trainer.prefix import ATTENTION, Layout, attention_backward, attention_forward

# Layers whose forward is: norm, attention with rotary positions, residual, norm, SwiGLU, residual; and nothing else.
KNOWN_LAYERS = ("LlamaDecoderLayer", "Qwen2DecoderLayer")
ATTENTION_LINEARS, GATED = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


@dataclass
class Group:
    """Linear layers that read the same input, as one: frozen weight (out, in) and bias, and the LoRA matrices of its members.

    The members' own weights are views of `weight`, so that all else which reads them (asking, saving, merging) sees them as they were.
    """

    weight: Any
    bias: Any
    members: tuple[Any, ...]
    adapter: str

    @property
    def learnt(self) -> list[Any]:
        """A and B of each member, in the members' order."""
        return [part[self.adapter].weight for one in self.members for part in (one.lora_A, one.lora_B)]

    def lora(self, dtype: Any) -> tuple[Any, Any]:
        """All A (ranks, in) and all s B, each in its own block (out, ranks), in the dtype of the products."""
        import torch

        matrices = self.learnt
        a = torch.cat(matrices[::2]).to(dtype)
        b = torch.zeros(self.weight.shape[0], a.shape[0], dtype=dtype, device=a.device)
        for (rows, ranks, at), matrix in zip(self._blocks(), matrices[1::2], strict=True):
            b[rows, ranks] = matrix * self._scaling(at)
        return a, b

    def forward(self, x: Any) -> tuple[Any, tuple[Any, Any, Any]]:
        """The outputs of all members beside each other (n, out), and what the backward pass needs: x Aᵀ, A and s B."""
        from torch.nn import functional

        a, b = self.lora(x.dtype)
        hidden = x @ a.t()
        return functional.linear(x, self.weight, self.bias).addmm_(hidden, b.t()), (hidden, a, b)

    def backward(self, grad: Any, x: Any, lora: Sequence[Any], *, to_input: bool = True) -> tuple[Any, list[Any]]:
        """Gradients of the input (None where it is not asked for) and of `learnt`, the latter in fp32."""
        hidden, a, b = lora
        hidden_grad = grad @ b
        a_grad = (hidden_grad.t() @ x).to(self.learnt[0].dtype)
        b_grad = grad.t() @ hidden
        grads: list[Any] = []
        for rows, ranks, at in self._blocks():
            grads += [a_grad[ranks], b_grad[rows, ranks].to(a_grad.dtype) * self._scaling(at)]
        return (grad @ self.weight).addmm_(hidden_grad, a) if to_input else None, grads

    def _scaling(self, at: int) -> float:
        return float(self.members[at].scaling[self.adapter])

    def _blocks(self) -> list[tuple[slice, slice, int]]:
        """Rows and ranks of each member."""
        found, row, rank = [], 0, 0
        for at, one in enumerate(self.members):
            rows, ranks = one.base_layer.out_features, one.r[self.adapter]
            found.append((slice(row, row + rows), slice(rank, rank + ranks), at))
            row, rank = row + rows, rank + ranks
        return found


def group(members: Sequence[Any], adapter: str) -> Group:
    """The members as one. Their weights move into one block of memory, and become views of it."""
    import torch

    bases = [one.base_layer for one in members]
    weight = torch.cat([one.weight.data for one in bases]) if len(bases) > 1 else bases[0].weight.data
    bias = None if bases[0].bias is None else torch.cat([one.bias.data for one in bases])
    row = 0
    for one in bases:
        one.weight.data = weight[row : row + one.out_features]
        row += one.out_features
    return Group(weight, bias, tuple(members), adapter)


@dataclass
class Layer:
    """What the autograd function reads of one decoder layer."""

    qkv: Group
    output: Group
    gate_up: Group
    down: Group
    first_norm: Any
    second_norm: Any
    head_size: int
    query_heads: int
    key_heads: int
    layout: Layout

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.qkv, self.output, self.gate_up, self.down


def fuse_layers(model: Any, layout: Layout, adapter: str = "default") -> int:
    """Give every decoder layer that is known, and has plain LoRA on all its linear layers, the fused forward; returns how many.

    It holds for batches in the layout of `prefix.py`; in any other (asking, with a cache) a layer does as before.
    """
    fused = 0
    for module in model.modules():
        layer = _layer(module, layout, adapter)
        if layer is not None:
            module.forward = types.MethodType(_forward_of(layer, module.forward), module)
            fused += 1
    return fused


def _layer(module: Any, layout: Layout, adapter: str) -> Layer | None:
    if type(module).__name__ not in KNOWN_LAYERS or not type(module).__module__.startswith("transformers.models."):
        return None
    attention, mlp = module.self_attn, module.mlp
    qkv, gated = [getattr(attention, name) for name in ATTENTION_LINEARS], [getattr(mlp, name) for name in GATED]
    linears = [*qkv, attention.o_proj, *gated, mlp.down_proj]
    if not all(is_plain_lora(one, adapter) for one in linears) or attention.config.hidden_act != "silu":
        return None
    if len({(one.base_layer.weight.dtype, one.base_layer.bias is None) for one in qkv + gated}) > 2:
        return None
    config = attention.config
    return Layer(
        group(qkv, adapter),
        group([attention.o_proj], adapter),
        group(gated, adapter),
        group([mlp.down_proj], adapter),
        module.input_layernorm,
        module.post_attention_layernorm,
        attention.head_dim,
        config.num_attention_heads,
        config.num_key_value_heads,
        layout,
    )


def _forward_of(layer: Layer, ordinary: Any) -> Any:
    def forward(self: Any, hidden_states: Any, *args: Any, position_embeddings: Any = None, **named: Any) -> Any:
        off = any(one.disable_adapters or one.merged for whole in layer.groups for one in whole.members)
        if self.self_attn.config._attn_implementation != ATTENTION or named.get("past_key_values") is not None or off:
            return ordinary(hidden_states, *args, position_embeddings=position_embeddings, **named)
        cos, sin = position_embeddings
        learnt = [matrix for whole in layer.groups for matrix in whole.learnt]
        given = (hidden_states, layer, cos[0], sin[0], *learnt)
        if self.training and getattr(self, "gradient_checkpointing", False):
            # In transformers this is done by the forward that ours has taken the place of.
            return self._gradient_checkpointing_func(decoder_layer().apply, *given)
        return decoder_layer().apply(*given)

    return forward


@cache
def decoder_layer() -> Any:
    """The autograd function (made on first use, so that torch loads late)."""
    import torch

    class DecoderLayer(torch.autograd.Function):  # type: ignore[misc]
        """x (1, n, width) -> x, n being the prefix and all tails; cos and sin (n, head size)."""

        @staticmethod
        def forward(ctx: Any, x: Any, layer: Layer, cos: Any, sin: Any, *learnt: Any) -> Any:
            flat = x[0]
            sin = _signed(sin)
            normed, scale = norm_forward(flat, layer.first_norm)
            qkv, qkv_lora = layer.qkv.forward(normed)
            _rotate(qkv, layer, cos, sin)
            mixed, kept = attention_forward(qkv, layer.layout, layer.query_heads, layer.key_heads)
            middle, output_lora = layer.output.forward(mixed)
            middle += flat
            second, second_scale = norm_forward(middle, layer.second_norm)
            gate_up, gate_up_lora = layer.gate_up.forward(second)
            gate, up = gate_up.chunk(2, -1)
            active = torch.nn.functional.silu(gate)
            product = active * up
            out, down_lora = layer.down.forward(product)
            out += middle
            ctx.layer, ctx.shape = layer, (layer.layout.prefix, layer.layout.tails)
            ctx.save_for_backward(
                *(cos, sin, flat, normed, scale, mixed, middle, second, second_scale, gate_up, active, product),
                *(*qkv_lora, *output_lora, *gate_up_lora, *down_lora, *kept),
            )
            return out[None]

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            layer = ctx.layer
            cos, sin, flat, normed, scale, mixed, middle, second, second_scale, gate_up, active, product, *rest = (
                ctx.saved_tensors
            )
            qkv_lora, output_lora, gate_up_lora, down_lora, kept = rest[:3], rest[3:6], rest[6:9], rest[9:12], rest[12:]
            grad = gradients[0][0]
            product_grad, down_learnt = layer.down.backward(grad, product, down_lora)
            both = _gated_backward(product_grad, gate_up, active)
            second_grad, gate_up_learnt = layer.gate_up.backward(both, second, gate_up_lora)
            grad = norm_backward(second_grad, middle, second_scale, layer.second_norm).add_(grad)
            mixed_grad, output_learnt = layer.output.backward(grad, mixed, output_lora)
            qkv_grad = attention_backward(mixed_grad, kept, Layout(*ctx.shape), layer.query_heads, layer.key_heads)
            _rotate(qkv_grad, layer, cos, -sin)
            wanted = ctx.needs_input_grad[0]
            normed_grad, qkv_learnt = layer.qkv.backward(qkv_grad, normed, qkv_lora, to_input=wanted)
            if wanted:
                grad = norm_backward(normed_grad, flat, scale, layer.first_norm).add_(grad)[None]
            return grad if wanted else None, None, None, None, *qkv_learnt, *output_learnt, *gate_up_learnt, *down_learnt

    return DecoderLayer


def _gated_backward(grad: Any, gate_up: Any, active: Any) -> Any:
    """Gradients of gate and up beside each other, from that of silu(gate) * up."""
    import torch

    both = torch.empty_like(gate_up)
    gate, up = gate_up.chunk(2, -1)
    gate_grad, up_grad = both.chunk(2, -1)
    torch.mul(grad, active, out=up_grad)
    torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=gate_grad)
    return both


def norm_forward(x: Any, norm: Any) -> tuple[Any, Any]:
    """RMSNorm (Zhang and Sennrich 2019), rounded where transformers rounds; and 1 / rms (n, 1), in fp32."""
    import torch

    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt(length.square_().div_(x.shape[-1]) + norm.variance_epsilon)
    return (x.float() * scale).to(x.dtype) * norm.weight, scale


def norm_backward(grad: Any, x: Any, scale: Any, norm: Any) -> Any:
    """scale (g - x̂ mean(g x̂)) with g = grad * weight and x̂ = x * scale, in fp32."""
    wide = (grad * norm.weight).float()
    hat = x.float() * scale
    along = (wide * hat).mean(-1, keepdim=True)
    return wide.addcmul_(hat, along, value=-1).mul_(scale).to(x.dtype)


def _signed(sin: Any) -> Any:
    """sin with the sign of the half that rotation takes from the other: minus for the first."""
    signed = sin.clone()
    signed[:, : sin.shape[-1] // 2].neg_()
    return signed


def _rotate(qkv: Any, layer: Layer, cos: Any, sin: Any) -> None:
    """Rotary positions (Su et al. 2021) on queries and keys in place; with -sin it is its own gradient."""
    heads = layer.query_heads + layer.key_heads
    size = layer.head_size
    turned = qkv[:, : heads * size].view(-1, heads, size)
    other = turned.roll(size // 2, -1)
    turned.mul_(cos[:, None]).addcmul_(other, sin[:, None])
