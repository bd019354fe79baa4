"""What a preference batch needs computed and no more: a prompt is read once for its two answers, logits are made where labels are."""

from __future__ import annotations

import types
from types import SimpleNamespace
from typing import Any

from trainer.data import IGNORED
from trainer.fused import has_plain_head
from trainer.prefix import supports

# Columns of the vocabulary whose logits exist at a time, as in trl.
CHUNK = 32768


def score_labelled_tokens(model: Any) -> bool:
    """Give the model under trl's DPOTrainer a lean forward for its batches; returns whether it has got one.

    trl asks its model for per-token log-probabilities (`fused_lm_head=True`). Where there is no Triton, as on a processor, its own
    forward projects every token of prompts and padding too and throws those away, and it reads each prompt twice. The numbers are
    the same, up to rounding. Everything else that the model is asked goes its usual way.
    """
    import torch

    if torch.cuda.is_available() or not has_plain_head(model):
        return False
    from trl.kernels import ChunkedLogProbFunction

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole, shares = base.forward, supports(base)
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1")

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return whole(*args, **({} if labels is None else {"labels": labels}), **kwargs)
        mask = labels[:, 1:] != IGNORED
        if shares:
            hidden = hidden_of_pairs(self.base_model, kwargs["input_ids"], kwargs["attention_mask"], labels)
        else:
            hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1][mask]
        weight, wanted = self.get_output_embeddings().weight, labels[:, 1:][mask]
        found = ChunkedLogProbFunction.apply(hidden, weight, None, wanted, 1.0, CHUNK, None, 1.0, outputs)
        spread = [None if one is None else one.new_zeros(mask.shape).masked_scatter(mask, one) for one in found]
        log_probs, entropy, _, mean_logits, is_top1 = spread
        return SimpleNamespace(log_probs=log_probs, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1, aux_loss=None)

    base.forward = types.MethodType(forward, base)
    return True


def hidden_of_pairs(backbone: Any, input_ids: Any, attention_mask: Any, labels: Any) -> Any:
    """The hidden states (labelled tokens, width) from which the labelled tokens are predicted, in the tokens' order.

    All arguments are (2 x pairs, length), padded on the right: the chosen rows, then the rejected ones behind the same prompts. Each
    pair is run as one row, prompt + chosen + rejected, in which the rejected answer stands at the positions behind the prompt and
    does not see the chosen one.
    """
    import torch

    pairs = len(input_ids) // 2
    prompt = (labels[:pairs] != IGNORED).int().argmax(1, keepdim=True)
    ends, rejected_ends = attention_mask.sum(1, keepdim=True).split(pairs)
    lengths = ends + rejected_ends - prompt
    at = torch.arange(int(lengths.max()), device=input_ids.device).expand(pairs, -1)
    second = at >= ends
    positions = torch.where(second, at - ends + prompt, at).clamp(max=input_ids.shape[1] - 1)
    ids = torch.where(second, input_ids[pairs:].gather(1, positions), input_ids[:pairs].gather(1, positions))

    asks, asked = at[:, :, None], at[:, None, :]
    first_answer = (asked >= prompt[:, :, None]) & (asked < ends[:, :, None])
    seen = (asked <= asks) & ~(second[:, :, None] & first_answer)
    floor = torch.finfo(backbone.dtype).min
    mask = torch.zeros(seen.shape, dtype=backbone.dtype, device=seen.device).masked_fill(~seen, floor)
    hidden = backbone(input_ids=ids, attention_mask=mask[:, None], position_ids=positions, use_cache=False).last_hidden_state

    row, before = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    pair = row % pairs
    moved = (row >= pairs) & (before >= prompt[pair, 0])
    return hidden[pair, torch.where(moved, before + (ends - prompt)[pair, 0], before)]
