"""Direct preference optimisation (Rafailov et al. 2023, 2305.18290) through trl's DPOTrainer, read from top to bottom.

Of each row the answer that won (`target`) is to become likelier against the one that lost (`rejected`) than it is under the
reference: the model with its adapter off, or, where all weights learn, the base's log-probabilities from before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.events import Note, OnEvent, Progress
from evals.records import content_hash, read_json, write_json
from trainer.arguments import common_arguments
from trainer.callbacks import Meter, Stop
from trainer.data import load_tokenizer
from trainer.fused import fuse_lora
from trainer.job import TrainedAdapter, TrainingJob
from trainer.labelled_head import score_labelled_tokens
from trainer.loop import begin, finish
from trainer.model import base_model, learn_in_fp32, peft_config
from trainer.order import remembered
from trainer.preference_pairs import Pair, Pairs, encode_pairs
from trainer.recipe import Recipe
from trainer.surviving import surviving
from trainer.watching import Measured

# The share of pairs that the robust loss takes to be the wrong way round (Chowdhury et al. 2024, 2403.00409); with none it is the
# sigmoid loss.
FLIPPED = 0.1
# Steps whose mean is told: those of one batch jump about.
TOLD_STEPS = 10


def run(job: TrainingJob, input_hash: str, emit: OnEvent, stop: Stop) -> TrainedAdapter | None:
    """Train to the end, or to the step at which a stop was asked for (then None; a checkpoint is kept).

    Dev's loss is that of its own pairs; where its rows have none it is not measured (a plain answer's loss may well rise while the
    right answer gains on the wrong one).
    """
    recipe = job.recipe
    tokenizer = load_tokenizer(job.model_folder)
    train = encode_pairs(tokenizer, job.prompt_format, job.train, recipe, "train", emit)
    paired = [example for example in job.dev if example.rejected is not None]
    dev = encode_pairs(tokenizer, job.prompt_format, paired, recipe, "dev", emit) if paired else Pairs((), (), 0)
    _say_what_is_left_aside(job, dev, emit)

    start = begin(job, emit)
    emit(Progress("loading the model", 0, 0, ""))
    model = base_model(job, start.device, longest=max(train.longest, dev.longest))
    emit(Progress("loading the model", 1, 1, ""))
    trainer = _trainer(model, tokenizer, recipe, train, dev, start.checkpoints, start.device, start.meter)
    learn_in_fp32(trainer.model)
    fuse_lora(trainer.model)
    score_labelled_tokens(trainer.model)
    measured = Measured(trainer.dev_pairs, trainer.mean_pair_loss)
    counted = {"rows": len(train.rows), "dropped": train.dropped}
    trained = finish(job, input_hash, trainer, start, measured, emit, stop, **counted, ids=train.ids)
    if trained:
        emit(Note(f"{job.purpose}: {_rewards(trainer)}"))
    return trained


def _say_what_is_left_aside(job: TrainingJob, dev: Pairs, emit: OnEvent) -> None:
    if job.dev and not dev.rows:
        emit(Note(f"{job.purpose}: dev rows have no rejected answer, so that DPO's loss is not measured on dev"))
    if job.replay:
        emit(Note(f"{job.purpose}: replay is left aside, DPO learns from pairs alone", "warning"))


def _rewards(trainer: Any) -> str:
    """How far the model has come, in the reward that it implies: beta times the log-ratio to the reference (eq. 5); 0 at the start."""
    steps = [entry for entry in trainer.state.log_history if "rewards/margins" in entry][-TOLD_STEPS:]
    right, margin = (sum(entry[f"rewards/{name}"] for entry in steps) / len(steps) for name in ("accuracies", "margins"))
    words = (
        f"the answer that won has the higher reward in {right:.0%} of the pairs of the last {len(steps)} steps, by {margin:.2f}"
    )
    if trainer.dev_rewards:
        words += "; on dev pairs in {:.0%}, by {:.2f}".format(*trainer.dev_rewards)
    return words


def _trainer(
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    train: Pairs,
    dev: Pairs,
    checkpoints: Path,
    device: str,
    meter: Meter,
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    class PairTrainer(surviving(DPOTrainer)):  # type: ignore[misc]
        """DPOTrainer on pairs that are token ids already, rendered as the model is asked."""

        dev_rewards: Sequence[float] = ()

        @property
        def dev_pairs(self) -> list[Pair]:
            return list(self.eval_dataset) if self.eval_dataset is not None else []

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            meter.tokens += int(inputs["attention_mask"].sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

        def mean_pair_loss(self, rows: Sequence[Pair]) -> float:
            """Mean loss over the pairs, without gradients; `dev_rewards` are their reward accuracy and margin."""
            tokens = meter.tokens

            def measure(some: Sequence[Pair]) -> list[float]:
                self._metrics["eval"].clear()
                loss = self.compute_loss(self.model, self._prepare_inputs(self.data_collator(list(some))))
                found = [float(loss), *(self._metrics["eval"][f"rewards/{name}"][0] for name in ("accuracies", "margins"))]
                return [one * len(some) for one in found]

            ordered = sorted(rows, key=lambda row: row["length"])
            parts = self.looked_at(ordered, recipe.per_device_train_batch_size, measure)
            meter.tokens = tokens
            self._metrics["eval"].clear()
            loss, *self.dev_rewards = (sum(part) / len(ordered) for part in zip(*parts, strict=True))
            return float(loss)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            """As it is: trl would render and tokenise in its own way."""
            return dataset

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            """The base's log-probabilities, measured before the first step and kept: a part that goes on later uses the same ones."""
            kept = checkpoints.parent / f"reference-{name}.json"
            key = content_hash([list(dataset), batch_size])
            found = read_json(kept) if kept.is_file() else {}
            if found.get("input_hash") != key:
                found = {"input_hash": key, "log_probs": _reference(self, dataset, batch_size)}
                write_json(kept, found)
            columns = zip(*found["log_probs"], strict=True)
            for column, values in zip(("ref_chosen_logps", "ref_rejected_logps"), columns, strict=True):
                dataset = dataset.add_column(column, list(values))
            return dataset

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            # Of the whole data set: the lengths are gone from what trl passes on.
            drawn = super()._get_train_sampler(self.train_dataset)
            a_pass = recipe.steps_of_a_pass(len(train.rows))
            return remembered(drawn, checkpoints / "orders.json", a_pass, lambda: int(self.state.global_step))

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """None: the run's report says what this adapter is."""

    config = DPOConfig(
        **common_arguments(recipe, checkpoints, device, len(train.rows)),
        beta=recipe.beta,
        loss_type=[recipe.loss_type],
        label_smoothing=FLIPPED if recipe.loss_type == "robust" else 0.0,
        # trl takes all dropout away; what a recipe asks for, it gets.
        disable_dropout=not recipe.lora_dropout,
        precompute_ref_log_probs=not recipe.use_peft,
        # Pairs of a batch are of about the same length: little padding.
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        max_length=None,
    )
    trainer = PairTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(list(train.rows)),
        eval_dataset=Dataset.from_list(list(dev.rows)) if dev.rows else None,
        processing_class=tokenizer,
        peft_config=peft_config(recipe),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _reference(trainer: Any, dataset: Any, batch_size: int) -> list[tuple[float, float]]:
    """Log-probability of (chosen, rejected) under the weights as they are now, in the data set's order."""
    rows = list(dataset)
    found: list[tuple[float, float]] = []
    trainer.model.eval()
    for start in range(0, len(rows), batch_size):
        inputs = trainer._prepare_inputs(trainer.data_collator(rows[start : start + batch_size]))
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, inputs)
        found += zip(chosen.tolist(), rejected.tolist(), strict=True)
    return found
