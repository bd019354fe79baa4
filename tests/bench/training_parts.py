"""What `training.py` and its peers share: the rows, the adapters' scores, what each change brings, and where the time goes."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

from harness import ROOT, bench_data

from evals.candidate import PromptFormat
from evals.engines.engine import Message, Request
from evals.engines.machine import measure_machine
from evals.engines.models import DEMO_MODEL, resolve_model
from evals.events import ignore
from evals.task.example import Example
from trainer.job import TrainingJob
from trainer.recipe import Recipe

SETS = ("triage", "banking77")
WORK = ROOT / "build" / "bench" / "training"
# Rows, passes and dev rows: (whole, fast).
SIZES = {"triage": ((300, 2, 70), (64, 1, 16)), "banking77": ((800, 1, 200), (64, 1, 16))}
NEW_TOKENS = {"triage": 48, "banking77": 16}
# Each with all that stand before it.
ABLATION = (
    "peft and transformers as they come",
    "logits at answer tokens",
    "plain attention for short rows",
    "LoRA in one function a layer",
    "beginning shared by a batch",
    "whole layer in one function",
)


def examples(name: str, split: str, count: int) -> tuple[Example, ...]:
    """Rows drawn by a fixed seed; of banking77 the label is the answer."""
    if name == "triage":
        path = ROOT / "advisor" / "examples" / "triage" / f"{split}.jsonl"
    else:
        path = bench_data() / name / ("train.jsonl" if split == "train" else "test.jsonl")
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    random.Random(0).shuffle(rows)
    return tuple(
        Example(f"{split}-{at}", (Message("user", row["input"]),), row["output"]) for at, row in enumerate(rows[:count])
    )


def instruction(name: str) -> str:
    """The short one, which tuned models are trained and asked with."""
    if name == "banking77":
        return "Name the intent of the customer's message."
    text = (ROOT / "advisor" / "examples" / "triage" / "instruction.md").read_text(encoding="utf-8")
    return text.split("\n\n", 1)[0].strip()


def job_of(name: str, *, fast: bool) -> TrainingJob:
    rows, passes, dev = SIZES[name][fast]
    return TrainingJob(
        model_folder=resolve_model(DEMO_MODEL, ignore),
        recipe=Recipe(num_train_epochs=passes, learning_rate=5e-4, replay_share=0.0),
        prompt_format=PromptFormat(instruction(name), "inline"),
        train=examples(name, "train", rows),
        dev=examples(name, "dev", dev),
        folder=WORK / name / "ours",
        dtype=measure_machine().dtype,
        purpose=name,
    )


def encoded(job: TrainingJob, split: str = "train") -> tuple[Any, list[dict[str, list[int]]]]:
    """Tokeniser and rows as our worker encodes them: every peer gets the same token ids and labels."""
    from trainer.data import encode_all, load_tokenizer

    tokenizer = load_tokenizer(job.model_folder)
    found = encode_all(tokenizer, job.prompt_format, getattr(job, split), job.recipe, split, ignore)
    return tokenizer, [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in found.rows]


def score_adapters(name: str, folders: dict[str, str]) -> dict[str, Any]:
    """Of each adapter: the task's metric on the answers that it writes to dev rows, and the mean loss of dev's answer tokens."""
    from evals.engines.handle import ModelHandle
    from evals.engines.hf import HfEngine
    from evals.metrics.structured import json_fields
    from evals.metrics.text import exact_match

    job = job_of(name, fast=False)
    compare = json_fields if name == "triage" else exact_match
    engine = HfEngine(ModelHandle(DEMO_MODEL, "auto", ignore))
    asked = [Request(one.id, tuple(job.prompt_format.messages(one)), NEW_TOKENS[name]) for one in job.dev]
    found: dict[str, Any] = {}
    for peer, folder in folders.items():
        answers = {response.id: response.text for response in engine.with_adapter(Path(folder), peer).generate(asked)}
        scores = [compare(answers[one.id].strip(), one.target) for one in job.dev]
        found[peer] = {"scores": scores, "loss": dev_loss(job, Path(folder))}
    return found


def dev_loss(job: TrainingJob, adapter: Path) -> float:
    """By transformers' and peft's own forward, in fp32 products of nothing but what was learnt."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trainer.fused import answer_loss

    tokenizer, rows = encoded(job, "dev")
    base = AutoModelForCausalLM.from_pretrained(job.model_folder, dtype=getattr(torch, job.dtype), local_files_only=True)
    model = PeftModel.from_pretrained(base, adapter).eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), 16):
            loss, count = answer_loss(model, padded(rows[start : start + 16], tokenizer.pad_token_id))
            total, tokens = total + float(loss), tokens + count
    return total / tokens


def padded(rows: list[dict[str, list[int]]], pad: int) -> dict[str, Any]:
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def fill(lists: list[list[int]], value: int) -> Any:
        return torch.tensor([one + [value] * (width - len(one)) for one in lists])

    return {
        "input_ids": fill([row["input_ids"] for row in rows], pad),
        "labels": fill([row["labels"] for row in rows], -100),
        "attention_mask": fill([[1] * len(row["input_ids"]) for row in rows], 0),
    }


class Stepper:
    """Training steps of a variant, without a trainer around them: forward, backward, clipping, fused AdamW."""

    def __init__(self, name: str, variant: str) -> None:
        import torch
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        from trainer.fused import fuse_lora
        from trainer.fused_layer import fuse_layers
        from trainer.model import peft_config
        from trainer.prefix import collator, share_prefix

        torch.set_num_threads(measure_machine().threads)
        torch.manual_seed(0)
        job = job_of(name, fast=False)
        level = ABLATION.index(variant)
        tokenizer, rows = encoded(job)
        self.all_logits, self.layout = level < 1, None
        base = AutoModelForCausalLM.from_pretrained(
            job.model_folder,
            dtype=getattr(torch, job.dtype),
            attn_implementation="eager" if level >= 2 else "sdpa",
            local_files_only=True,
        )
        if level >= 4:
            self.layout = share_prefix(base)
        self.model = get_peft_model(base, peft_config(job.recipe)).train()
        if level >= 3:
            fuse_lora(self.model)
        if level >= 5:
            fuse_layers(self.model, self.layout)
        rows.sort(key=lambda row: len(row["input_ids"]))
        batches = [rows[at : at + 8] for at in range(0, len(rows) - 7, 8)]
        random.Random(0).shuffle(batches)
        collate = collator(tokenizer.pad_token_id) if self.layout else lambda batch: padded(batch, tokenizer.pad_token_id)
        self.batches = [(collate(batch), sum(len(row["input_ids"]) for row in batch)) for batch in batches]
        learnt = [one for one in self.model.parameters() if one.requires_grad]
        self.learnt, self.optimiser = learnt, torch.optim.AdamW(learnt, lr=5e-4, fused=True)

    def step(self, at: int) -> int:
        """One step on batch `at`; returns its tokens."""
        import torch

        from trainer.fused import answer_loss

        inputs, tokens = self.batches[at % len(self.batches)]
        if self.all_logits:
            loss = self.model(**inputs).loss
        else:
            if self.layout:
                self.layout.prefix, self.layout.tails = inputs["layout"].tolist()
            total, count = answer_loss(self.model, inputs)
            loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learnt, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return tokens


def ablated(name: str, variant: str, steps: int) -> float:
    """Tokens a second of a variant, over `steps` steps after two."""
    stepper = Stepper(name, variant)
    for at in range(2):
        stepper.step(at)
    started = time.perf_counter()
    tokens = sum(stepper.step(2 + at) for at in range(steps))
    return tokens / (time.perf_counter() - started)


KINDS = {
    "matrix products of weights and adapters": ("aten::mm", "aten::addmm", "aten::addmm_"),
    "attention products": ("aten::bmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data", "aten::masked_fill_"),
    "SwiGLU": ("aten::silu", "aten::silu_backward"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::flip", "aten::clone", "aten::fill_", "aten::zero_"),
    "optimiser": ("aten::_fused_adamw_",),
}


def profiled(name: str) -> dict[str, float]:
    """Shares of the time of three steps by kind of operation; what is no operation of torch is Python and autograd."""
    from torch.profiler import ProfilerActivity, profile

    stepper = Stepper(name, ABLATION[-1])
    for at in range(3):
        stepper.step(at)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for at in range(3, 6):
            stepper.step(at)
    spent = {one.key: one.self_cpu_time_total for one in found.key_averages()}
    whole = sum(spent.values())
    shares = {kind: sum(spent.get(key, 0) for key in keys) / whole for kind, keys in KINDS.items()}
    known = {key for keys in KINDS.values() for key in keys}
    other = sum(value for key, value in spent.items() if key.startswith("aten::") and key not in known) / whole
    shares["other element-wise operations and reductions"] = other
    shares["Python and autograd"] = 1 - sum(shares.values())
    return {kind: round(share, 3) for kind, share in shares.items()}
