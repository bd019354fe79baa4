"""The order of rows in each pass, remembered: without it a training that goes on in the middle of a pass would draw another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from evals.records import read_json, write_json


def remembered(sampler: Any, path: Path, steps_of_a_pass: int, step: Callable[[], int]) -> Any:
    """The sampler, whose orders are kept in `path`; in the middle of a pass that was begun before, the order is that of then.

    transformers draws the order from the random state at the start of a pass, which a checkpoint from the middle of it does not hold
    (it does bring back the state of the middle once the seen batches are skipped). At the start of a pass the checkpoint's own state
    is used, and the order is drawn from it as it was. `step` tells the optimiser step that the training is at.
    """
    from torch.utils.data import Sampler

    class Remembered(Sampler):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(sampler)

        def __iter__(self) -> Iterator[int]:
            turn, within = divmod(step(), steps_of_a_pass)
            orders: dict[str, list[int]] = read_json(path)["orders"] if step() and path.is_file() else {}
            kept = orders.get(str(turn))
            if within and kept is not None and sorted(kept) == list(range(len(sampler))):
                return iter(kept)
            order = [int(one) for one in sampler]
            write_json(path, {"orders": {**orders, str(turn): order}})
            return iter(order)

    return Remembered()
