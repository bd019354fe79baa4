"""What every method that learns answers or texts shares: trl's SFTTrainer on rows that are token ids with labels already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.events import OnEvent, Progress
from trainer.arguments import common_arguments
from trainer.callbacks import Meter, Stop
from trainer.data import IGNORED, Encoded
from trainer.fused import answer_loss, fuse_lora, has_plain_head
from trainer.fused_layer import fuse_layers
from trainer.job import TrainedAdapter, TrainingJob
from trainer.loop import begin, finish
from trainer.model import base_model, peft_config
from trainer.order import remembered
from trainer.prefix import WORTHWHILE, Layout, collator, common_prefix, share_prefix, supports
from trainer.recipe import Recipe
from trainer.surviving import surviving
from trainer.template import NewTokens, prepared
from trainer.watching import Measured


def train_on(
    job: TrainingJob,
    input_hash: str,
    tokenizer: Any,
    train: Encoded,
    dev: Encoded,
    emit: OnEvent,
    stop: Stop,
    *,
    rows: int,
    ids: Sequence[str] = (),
) -> TrainedAdapter | None:
    """Train on encoded rows to the end, or to the step at which a stop was asked for (then None; a checkpoint is kept).

    `rows` of the task are among them, and `ids` names the rows of `train` where they are not the job's own, in order.
    """
    recipe = job.recipe
    start = begin(job, emit)
    emit(Progress("loading the model", 0, 0, ""))
    model = base_model(job, start.device, longest=max(len(row["input_ids"]) for row in train.rows))
    new = prepared(job)
    new.put_into(model)
    emit(Progress("loading the model", 1, 1, ""))
    layout, collate = _batches(model, tokenizer, train, dev, start.device)
    trainer = _trainer(model, tokenizer, new, recipe, train, start.checkpoints, start.device, start.meter, layout, collate)
    fuse_lora(trainer.model)
    if layout:
        fuse_layers(trainer.model, layout)
    measured = Measured(dev.rows, lambda rows: trainer.mean_answer_loss(rows, 2 * recipe.per_device_train_batch_size))
    return finish(job, input_hash, trainer, start, measured, emit, stop, rows=rows, dropped=train.dropped, ids=ids)


def _batches(model: Any, tokenizer: Any, train: Encoded, dev: Encoded, device: str) -> tuple[Layout | None, Any]:
    """How rows become batches: around their common beginning where that pays, else padded, as trl does it (None)."""
    prefix = common_prefix([*train.rows, *dev.rows])
    if device != "cpu" or prefix < WORTHWHILE or not supports(model) or not has_plain_head(model):
        return None, None
    return share_prefix(model), collator(tokenizer.pad_token_id)


def _trainer(
    model: Any,
    tokenizer: Any,
    new: NewTokens,
    recipe: Recipe,
    train: Encoded,
    checkpoints: Path,
    device: str,
    meter: Meter,
    layout: Layout | None,
    collate: Any,
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class AnswerTrainer(surviving(SFTTrainer)):  # type: ignore[misc]
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
            seen = meter.tokens

            def measure(some: Sequence[dict[str, list[int]]]) -> tuple[float, int]:
                inputs = self._prepare_inputs(self.data_collator(list(some)))
                count = int((inputs["labels"] != IGNORED).sum())
                return float(self.compute_loss(self.model, inputs)) * count, count

            parts = self.looked_at(sorted(rows, key=lambda row: len(row["input_ids"])), batch, measure)
            meter.tokens = seen
            total, tokens = (sum(part) for part in zip(*parts, strict=True))
            return float(total / tokens)

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            drawn = super()._get_train_sampler(*args, **kwargs)
            a_pass = recipe.steps_of_a_pass(len(train.rows))
            return remembered(drawn, checkpoints / "orders.json", a_pass, lambda: int(self.state.global_step))

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """None: the run's report says what this adapter is."""

    config = SFTConfig(
        **common_arguments(recipe, checkpoints, device, len(train.rows)),
        # Rows of a batch are of about the same length: little padding.
        train_sampling_strategy="group_by_length",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = AnswerTrainer(
        model=model,
        args=config,
        data_collator=collate,
        train_dataset=Dataset.from_list(list(train.rows)),
        processing_class=tokenizer,
        peft_config=peft_config(recipe, **new.peft_settings(model)),
    )
    trainer.remove_callback(PrinterCallback)
    new.leave_out_the_rest(trainer.model)
    return trainer
