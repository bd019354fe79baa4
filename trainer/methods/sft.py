"""Supervised fine-tuning with LoRA (Hu et al. 2021) through trl's SFTTrainer, read from top to bottom."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.engines.machine import measure_machine
from evals.events import Note, OnEvent, Progress, TrainingStep
from trainer.callbacks import Meter, Stop, event_stream
from trainer.checkpoints import Spent, last_complete
from trainer.data import IGNORED, Encoded, encode_all, encode_replay, load_tokenizer
from trainer.fused import answer_loss, fuse_lora, has_plain_head
from trainer.job import TrainedAdapter, TrainingJob
from trainer.prefix import WORTHWHILE, Layout, collator, common_prefix, share_prefix, supports
from trainer.recipe import Recipe

# On a processor, torch's SDPA is slower backward than plain attention up to about this many tokens a row (measured).
SHORT_ROW = 512


def run(job: TrainingJob, input_hash: str, emit: OnEvent, stop: Stop) -> TrainedAdapter | None:
    """Train to the end, or to the step at which a stop was asked for (then None; a checkpoint is kept)."""
    import torch
    from transformers import set_seed

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(measure_machine().threads)
    recipe = job.recipe
    tokenizer = load_tokenizer(job.model_folder)
    train = encode_all(tokenizer, job.prompt_format, job.train, recipe.max_length, "train", emit)
    dev = encode_all(tokenizer, job.prompt_format, job.dev, recipe.max_length, "dev", emit)
    task_rows = len(train.rows)
    train = replace(train, rows=train.rows + encode_replay(tokenizer, job.replay, recipe.max_length))

    checkpoints = job.folder / "checkpoints"
    kept = last_complete(checkpoints)
    meter = Meter(before=kept[1] if kept else Spent())
    if kept:
        emit(Note(f"{job.purpose}: going on from step {kept[0].name.removeprefix('checkpoint-')}"))

    set_seed(recipe.seed)
    emit(Progress("loading the model", 0, 0, ""))
    model = _base_model(job, device, longest=max(len(row["input_ids"]) for row in train.rows))
    emit(Progress("loading the model", 1, 1, ""))
    layout, collate = _batches(model, tokenizer, train, dev, device)
    trainer = _trainer(model, tokenizer, recipe, train, checkpoints, device, meter, layout, collate)
    fuse_lora(trainer.model)
    trainer.add_callback(event_stream(emit, meter, stop, job.purpose))
    trainer.train(resume_from_checkpoint=str(kept[0]) if kept else None)
    stop.training = False
    if trainer.state.global_step < trainer.state.max_steps:
        return None

    spent = meter.spent
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    final_loss = sum(losses[-10:]) / len(losses[-10:])
    dev_loss = trainer.mean_answer_loss(dev.rows, 2 * recipe.per_device_train_batch_size) if dev.rows else None
    steps = trainer.state.global_step
    speed = spent.tokens / max(spent.seconds, 1e-9)
    emit(TrainingStep(job.purpose, steps, steps, final_loss, dev_loss, 0.0, speed, 0.0, meter.spent.memory_mib))
    adapter = _save_adapter(trainer.model, job.folder)
    trained = TrainedAdapter(
        folder=adapter,
        input_hash=input_hash,
        steps=steps,
        train_tokens=spent.tokens,
        seconds=round(spent.seconds, 3),
        tokens_per_second=round(speed, 1),
        final_loss=final_loss,
        dev_loss=dev_loss,
        peak_memory_mib=round(meter.spent.memory_mib, 1),
        rows=task_rows,
        dropped=train.dropped,
        reused=False,
    )
    trained.write(job.folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return trained


def _base_model(job: TrainingJob, device: str, longest: int) -> Any:
    """The frozen base in the job's dtype (LoRA weights on top are fp32, made by peft)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job.model_folder,
        dtype=getattr(torch, job.dtype),
        attn_implementation="eager" if device == "cpu" and longest <= SHORT_ROW else "sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    return model.to(device)


def _batches(model: Any, tokenizer: Any, train: Encoded, dev: Encoded, device: str) -> tuple[Layout | None, Any]:
    """How rows become batches: around their common beginning where that pays, else padded, as trl does it (None)."""
    prefix = common_prefix([*train.rows, *dev.rows])
    if device != "cpu" or prefix < WORTHWHILE or not supports(model) or not has_plain_head(model):
        return None, None
    return share_prefix(model), collator(prefix, tokenizer.pad_token_id)


def _trainer(
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    train: Encoded,
    checkpoints: Path,
    device: str,
    meter: Meter,
    layout: Layout | None,
    collate: Any,
) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
        """SFTTrainer that makes logits at the answer's tokens only; trl's own loss makes all of them on a processor."""

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            meter.tokens += int(inputs["tokens"] if "tokens" in inputs else inputs["attention_mask"].sum())
            if not has_plain_head(self.model):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if layout:
                layout.prefix, layout.tails = inputs["layout"].tolist()
            loss, count = answer_loss(self.model, inputs)
            return loss / (count if num_items_in_batch is None else num_items_in_batch)

        def mean_answer_loss(self, rows: Sequence[dict[str, list[int]]], batch: int) -> float:
            """Mean loss over all answer tokens of the rows, without gradients."""
            self.model.eval()
            total, tokens, seen = 0.0, 0, meter.tokens
            ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
            for start in range(0, len(ordered), batch):
                inputs = self._prepare_inputs(self.data_collator(ordered[start : start + batch]))
                count = int((inputs["labels"] != IGNORED).sum())
                with torch.no_grad():
                    total += float(self.compute_loss(self.model, inputs)) * count
                tokens += count
            meter.tokens = seen
            return total / tokens

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """None: the run's report says what this adapter is."""

    modules = recipe.lora_target_modules
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )
    config = SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=recipe.num_train_epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_steps,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        # Rows of a batch are of about the same length: little padding.
        train_sampling_strategy="group_by_length",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        # The base is held in its dtype and the adapter in fp32; autocast would only add copies.
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=device == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=device != "cpu",
        save_strategy="steps",
        save_steps=recipe.save_steps,
        # Two, so that the last marked one is there until the next one is marked.
        save_total_limit=2,
        save_only_model=False,
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    rows = Dataset.from_list(list(train.rows))
    trainer = AnswerTrainer(
        model=model,
        args=config,
        data_collator=collate,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save_adapter(model: Any, folder: Path) -> Path:
    """The adapter as a folder that is there whole or not at all, its files the same bytes for the same weights."""
    new, final = folder / ".adapter.new", folder / "adapter"
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new, safe_serialization=True)
    (new / "README.md").unlink(missing_ok=True)
    # peft writes sets in the order of Python's string hashes, which changes from process to process.
    path = new / "adapter_config.json"
    config = json.loads(path.read_text())
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            config[name] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in new.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(new, final)
    return final
