"""What a model's linear layers are given on texts: second moments, from which weights can be solved for without training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any


def input_moments(
    modules: Mapping[str, Any],
    read: Callable[[list[int]], Any],
    texts: Sequence[Sequence[int]],
    layers: Collection[str],
    told: Callable[[int], None],
) -> dict[str, Any]:
    """Of each of the `layers` (names in `modules`) the mean over all tokens of x x^T, x what the layer is given: fp32 (in, in), on the
    model's device. Not centred. Layers that are given the very same tensor (queries, keys and values) share one.

    `read` runs the model on one text's token ids; `told` hears of every text. Raises KeyError for a layer that is not there.
    """
    import torch

    sums: dict[str, Any] = {}
    same: dict[str, str] = {}
    last: list[Any] = ["", None]

    def counted(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(_: Any, given: tuple[Any, ...]) -> None:
            if given[0] is last[1]:
                same[name] = last[0]
                return
            last[:] = [name, given[0]]
            x = given[0].reshape(-1, given[0].shape[-1]).float()
            if name in sums:
                sums[name].addmm_(x.T, x)
            else:
                sums[name] = x.T @ x

        return hook

    hooks = [modules[name].register_forward_pre_hook(counted(name)) for name in layers]
    try:
        with torch.inference_mode():
            for ids in texts:
                read(list(ids))
                last[:] = ["", None]
                told(1)
    finally:
        for one in hooks:
            one.remove()
    total = sum(map(len, texts))
    mean = {name: one / total for name, one in sums.items()}
    return {name: mean[same.get(name, name)] for name in layers}
