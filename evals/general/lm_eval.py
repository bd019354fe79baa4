"""Runs general benchmarks through lm-eval on an engine's own weights, item by item, for base and tuned alike."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evals.engines.hf import HfEngine
from evals.events import OnEvent, Ticker
from evals.general.suites import GeneralTask
from evals.records import content_hash, read_json, read_jsonl, write_json, write_jsonl

# Accuracy moves with batch size and dtype: both are the same for the two arms of a comparison.
BATCH_SIZE = 32


@dataclass(frozen=True)
class GeneralItem:
    """One benchmark item: `score` is 1 where it was answered right, else 0; `output` what the model chose or wrote."""

    id: str
    task: str
    score: float
    output: str


@dataclass(frozen=True)
class GeneralScores:
    model: str
    suite: str
    items: tuple[GeneralItem, ...]

    @property
    def mean(self) -> float:
        return sum(item.score for item in self.items) / len(self.items)

    def without(self, left_out: Collection[str]) -> GeneralScores:
        return replace(self, items=tuple(one for one in self.items if one.id not in left_out))

    def by_task(self) -> dict[str, list[GeneralItem]]:
        tasks: dict[str, list[GeneralItem]] = {}
        for item in self.items:
            tasks.setdefault(item.task, []).append(item)
        return tasks


def measure(
    engine: HfEngine, suite: str, tasks: Sequence[GeneralTask], folder: Path, label: str, on_event: OnEvent
) -> tuple[GeneralScores, bool]:
    """Per-item scores of a model on a suite, kept as `folder/<suite>/<label>.jsonl`, task by task.

    A finished task is kept, so that an interrupted measurement goes on with the next. Returns the scores and whether all
    were there already.
    """
    items: list[GeneralItem] = []
    reused = True
    base = folder / suite / label
    todo = []
    for task in tasks:
        key = content_hash([engine.fingerprint, task.digest, BATCH_SIZE])
        path, meta = base / f"{task.name}.jsonl", base / f"{task.name}.json"
        if not (path.is_file() and meta.is_file() and read_json(meta).get("input_hash") == key):
            todo.append((task, key, path, meta))
    if todo:
        reused = False
        ticker = Ticker(on_event, f"{label} on {suite}", sum(task.items for task, *_ in todo), "items")
        lm = _language_model(engine)
        for task, key, path, meta in todo:
            found = _run(lm, engine, task, ticker)
            write_jsonl(path, [asdict(one) for one in found])
            write_json(meta, {"input_hash": key, "task": task.name, "model": label, "batch_size": BATCH_SIZE})
    for task in tasks:
        items += [GeneralItem(**row) for row in read_jsonl(base / f"{task.name}.jsonl")]
    write_jsonl(folder / suite / f"{label}.jsonl", [asdict(one) for one in items])
    return GeneralScores(label, suite, tuple(items)), reused


def _language_model(engine: HfEngine) -> Any:
    """lm-eval's own HF class over the engine's weights; it only tells how far it is."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from lm_eval.models.huggingface import HFLM

    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Told(HFLM):  # type: ignore[misc]
        """`answered` is called with the number of requests of each batch."""

        answered: Any = None

        # Its own bars stay away: the events tell how far it is.
        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            with torch.inference_mode():
                logits = self.model(inps).logits
            if self.answered:
                self.answered(inps.shape[0])
            return logits

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
            out = super()._model_generate(context, max_length, stop, **settings)
            if self.answered:
                self.answered(context.shape[0])
            return out

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with engine.active():
            return Told(
                pretrained=engine.handle.model,
                tokenizer=engine.handle.tokenizer,
                batch_size=BATCH_SIZE,
                softmax_dtype=torch.float32,
            )


def _run(lm: Any, engine: HfEngine, task: GeneralTask, ticker: Ticker) -> list[GeneralItem]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    # An item asks one request a choice: batches are counted in requests and told in items.
    requests_per_item = 1.0 if task.chat else float(len(task.config["custom_dataset"]()["test"][0].get("choices") or "ab"))
    told = 0.0
    finished = ticker.done + task.items

    def answered(requests: int) -> None:
        nonlocal told
        told += requests / requests_per_item
        whole = min(int(told), finished - ticker.done)
        told -= whole
        ticker.advance(whole)

    lm.answered = answered
    state = random.getstate()
    try:
        with engine.active(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = simple_evaluate(
                model=lm,
                tasks=[dict(task.config)],
                task_manager=TaskManager(include_defaults=False, include_path=None),
                log_samples=True,
                bootstrap_iters=0,
                apply_chat_template=task.chat,
            )
    finally:
        random.setstate(state)
    ticker.advance(finished - ticker.done)
    (samples,) = result["samples"].values()
    samples = sorted(samples, key=lambda one: one["doc_id"])
    return [GeneralItem(one["doc"]["id"], task.name, float(one["acc"]), _output(task, one)) for one in samples]


def _output(task: GeneralTask, sample: dict[str, Any]) -> str:
    """What the model wrote, or the choice that it found most likely."""
    if task.chat:
        return str(sample["filtered_resps"][0])
    likelihoods = [float(one[0]) for one in sample["filtered_resps"]]
    return str(max(range(len(likelihoods)), key=likelihoods.__getitem__))
