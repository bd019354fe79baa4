"""lm-eval in this process, as it has to be before a task of it is loaded or asked."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

SEED = 1234


def ready(task: Any) -> None:
    """What `simple_evaluate` does before it asks: no examples in the prompt where none are named, and the seed that draws them."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEED)


def prepare() -> None:
    """lm-eval in this process: without bars of its own, and with templates, which may come from a user's folder, in Jinja's sandbox."""
    import datasets
    import lm_eval.api.task
    import lm_eval.utils
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    if not isinstance(lm_eval.utils.env, SandboxedEnvironment):
        made = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
        made.filters.update(lm_eval.utils.env.filters)
        lm_eval.utils.env = made
        lm_eval.api.task.tqdm = partial(lm_eval.api.task.tqdm, disable=True)


@contextmanager
def seeded() -> Iterator[None]:
    """The same draws for each model that is asked, and the caller's afterwards."""
    import numpy as np

    before, numbers = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numbers)
