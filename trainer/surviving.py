"""What keeps a training alive step by step, for every trl trainer alike: batches that fit, numbers that are finite, whole checkpoints."""

from __future__ import annotations

import gc
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evals.errors import AdvisorError
from evals.events import Note, OnEvent
from trainer.callbacks import Meter
from trainer.checkpoints import is_whole, last_complete, mark_complete, prune
from trainer.memory import SMALLER, out_of_memory
from trainer.settled import Settled, read_settled

# Beside the tensors of a batch: the rows that it was made of, so that it can be made again from fewer.
ROWS = "advisor_rows"
IGNORED = -100
NAMED = 8


@dataclass
class Guard:
    """What a surviving trainer must know of its job. `row_ids` names the rows of the training set, in its order.

    `keep` whole checkpoints are kept; `folder` is the job's own, where the number of rows that fit into memory is written down.
    """

    folder: Path
    input_hash: str
    purpose: str
    keep: int
    emit: OnEvent
    meter: Meter
    row_ids: Sequence[str] = ()

    def rows_at_once(self) -> int:
        """So many rows fit into memory; 0 as long as whole batches do."""
        settled = read_settled(self.folder)
        return settled.rows_at_once if settled else 0

    def settle(self, rows: int, batch: int) -> None:
        """Remember that no more than `rows` fit at once, and say so."""
        replace(read_settled(self.folder) or Settled(1), rows_at_once=rows).write(self.folder)
        text = (
            f"{self.purpose}: {batch} rows at once do not fit into memory: going on with {rows} at a time. The steps, their rows "
            "and their gradients stay the same, up to rounding."
        )
        self.emit(Note(text, "warning"))


@dataclass(frozen=True)
class Rows:
    """Raw rows that travel in a batch; what moves tensors to a device leaves this alone."""

    rows: tuple[Any, ...]


def surviving(trainer_class: type) -> Any:
    """The trainer class, with what it needs to survive (made when called, so that trl loads late).

    `finish` gives the trainer its `guard` before it trains.
    """
    import torch

    class Surviving(trainer_class):  # type: ignore[misc]
        guard: Guard
        # transformers' own, named for the type checker.
        data_collator: Any
        current_gradient_accumulation_steps: Any
        # Of the optimiser step in hand: its number, and the rows of its batches so far.
        _of_step = -1
        _seen: list[tuple[Any, ...]]
        _rows_at_once = 0
        # Random states at the end of the last step.
        _after_step: Any = None

        def get_train_dataloader(self) -> Any:
            """trl's own, whose batches carry their rows."""
            plain = self.data_collator
            self.data_collator = _with_rows(plain)
            try:
                return super().get_train_dataloader()
            finally:
                self.data_collator = plain

        def train(self, *args: Any, **kwargs: Any) -> Any:
            self._rows_at_once, self._seen = self.guard.rows_at_once(), []
            return super().train(*args, **kwargs)

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            """Forward and backward of a batch; where memory is too small, of ever smaller pieces of it.

            A failed backward leaves parts of gradients behind, so those of the step's earlier batches are made again as well.
            """
            rows = inputs.pop(ROWS).rows
            if self._of_step != self.state.global_step:
                self._of_step, self._seen = self.state.global_step, []
            tokens = self.guard.meter.tokens
            loss = self._in_pieces(model, rows, num_items_in_batch, inputs)
            while loss is None:
                self._shrink(rows)
                model.zero_grad()
                again = [self._in_pieces(model, one, num_items_in_batch) for one in self._seen]
                self.guard.meter.tokens = tokens
                if all(one is not None for one in again):
                    loss = self._in_pieces(model, rows, num_items_in_batch)
            self._seen.append(rows)
            if not torch.isfinite(loss).all():
                raise self._not_finite(model, f"the loss is {float(loss)}", num_items_in_batch)
            return loss

        def _in_pieces(self, model: Any, rows: Sequence[Any], items: Any, batch: dict[str, Any] | None = None) -> Any:
            """The loss of these rows, run so many at once as fit; None where memory was too small. `batch` is them collated, if known."""
            size = self._rows_at_once or len(rows)
            if batch is not None and len(rows) <= size:
                return self._attempt(model, batch, items)
            batches = [self.data_collator(list(rows[at : at + size])) for at in range(0, len(rows), size)]
            weights = [_weight(one, len(rows[at * size : (at + 1) * size])) for at, one in enumerate(batches)]
            steps, losses = self.current_gradient_accumulation_steps, []
            try:
                for one, weight in zip(batches, weights, strict=True):
                    # A loss that is a sum over the step's items adds up by itself. One that is a mean over its batch is divided by this
                    # number in transformers, and so counts for its part of the batch.
                    self.current_gradient_accumulation_steps = steps * sum(weights) / weight
                    loss = self._attempt(model, one, items)
                    if loss is None:
                        return None
                    losses.append(loss)
            finally:
                self.current_gradient_accumulation_steps = steps
            return torch.stack(losses).sum()

        def _attempt(self, model: Any, batch: dict[str, Any], items: Any) -> Any:
            try:
                return super().training_step(model, batch, items)
            except (MemoryError, RuntimeError, OSError) as error:
                if not out_of_memory(error):
                    raise
            # Here the failed frames are gone, and with them what they held.
            return None

        def looked_at(self, rows: Sequence[Any], size: int, measure: Callable[[Sequence[Any]], Any]) -> list[Any]:
            """`measure` of `size` rows after the other, without gradients or dropout; of fewer where memory is too small for them.

            The model is left as it was: trl logs the metrics of a step by the mode that it finds the model in.
            """
            training, at, found = self.model.training, 0, []
            size = min(size, self._rows_at_once or size)
            self.model.eval()
            try:
                while at < len(rows):
                    some = rows[at : at + size]
                    one = self._look(some, measure)
                    if one is not None:
                        found.append(one)
                        at += len(some)
                    elif len(some) == 1:
                        raise _one_row_too_large(["dev"], some)
                    else:
                        size = (len(some) + 1) // 2
                        _let_go()
            finally:
                self.model.train(training)
            return found

        def _look(self, rows: Sequence[Any], measure: Callable[[Sequence[Any]], Any]) -> Any:
            try:
                with torch.no_grad():
                    return measure(rows)
            except (MemoryError, RuntimeError, OSError) as error:
                if not out_of_memory(error):
                    raise
            return None

        def _shrink(self, rows: Sequence[Any]) -> None:
            had = min(self._rows_at_once or len(rows), len(rows))
            if had == 1:
                raise _one_row_too_large(self._names(rows), rows)
            self._rows_at_once = (had + 1) // 2
            _let_go()
            self.guard.settle(self._rows_at_once, had)

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            norm = super()._get_grad_norm(model, grad_norm)
            if not torch.isfinite(torch.as_tensor(norm)).all():
                raise self._not_finite(model, f"the gradient's norm is {float(norm)}", None)
            return norm

        def _not_finite(self, model: Any, what: str, items: Any) -> AdvisorError:
            """The step before is kept as a checkpoint; the error names the rows that make such numbers by themselves."""
            if learnt := _not_finite_weights(model, learnt=True):
                return self._overflown(learnt)
            rows = [row for seen in self._seen for row in seen]
            bad = _not_finite_weights(model, learnt=False)
            guilty = [] if bad else [row for row in rows if not self._finite_alone(model, row, items)]
            step, kept = self.state.global_step, self._keep_step_before(model)
            return AdvisorError(
                f"step {step + 1}: {what}; nothing of this step was applied. {_blame(bad, self._names(guilty), self._names(rows))}",
                where=str(kept) if kept else str(self.guard.folder),
                do=(
                    f"look at these rows, or set a lower `learning_rate` than {self.args.learning_rate:g} under `train:`. "
                    + (
                        f"The weights as they were after step {step} are kept there."
                        if kept
                        else "No step had been finished before."
                    )
                ),
            )

        def _overflown(self, bad: list[str]) -> AdvisorError:
            """An update has made weights that answer nothing. They are not kept: what was kept before them stays."""
            found = last_complete(Path(self.args.output_dir))
            kept = f"The checkpoint before is kept: {found[0].name}." if found else "No checkpoint had been made before."
            return AdvisorError(
                f"after step {self.state.global_step} the weights themselves hold numbers that are not finite ({len(bad)} of them, "
                f"first {bad[0]}), and are not kept. {kept}",
                where=str(found[0] if found else self.guard.folder),
                do=f"set a lower `learning_rate` than {self.args.learning_rate:g}, or a lower `max_grad_norm`, under `train:`.",
            )

        def _finite_alone(self, model: Any, row: Any, items: Any) -> bool:
            model.zero_grad()
            loss = self._attempt(model, self.data_collator([row]), items)
            norms = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
            return loss is None or bool(torch.isfinite(loss) and all(torch.isfinite(norm) for norm in norms))

        def _names(self, rows: Sequence[Any]) -> list[str]:
            """Which rows of the training set these are; several where the set holds a row twice."""
            wanted = list(rows)
            numbered = (number for number, row in enumerate(self.train_dataset) if any(_same(row, one) for one in wanted))
            ids = self.guard.row_ids
            return [ids[number] if number < len(ids) else f"row {number + 1}" for number in numbered]

        def _keep_step_before(self, model: Any) -> Path | None:
            """A checkpoint of the last good step. Random states are those at its end, so that going on from it is exact."""
            if not self.state.global_step:
                return None
            model.zero_grad()
            if self._after_step is not None:
                _set_random_states(self._after_step)
            self._save_checkpoint(self.model, None)
            return self._checkpoint()

        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            self._after_step = _random_states()

        def _checkpoint(self) -> Path:
            return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """transformers' files, then our mark, then older ones go: whole or not at all."""
            folder = self._checkpoint()
            if is_whole(folder):
                # Written over, it would be torn for a while.
                return
            if bad := _not_finite_weights(self.model, learnt=True):
                raise self._overflown(bad)
            try:
                super()._save_checkpoint(model, trial)
                mark_complete(folder, self.guard.meter.spent, self.guard.input_hash)
            except Exception:
                # On a full disk the room is needed.
                shutil.rmtree(folder, ignore_errors=True)
                raise
            prune(folder.parent, self.guard.keep)

    return Surviving


def _let_go() -> None:
    """Give back what failed frames have held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _with_rows(collate: Callable[[list[Any]], dict[str, Any]]) -> Callable[[list[Any]], dict[str, Any]]:
    return lambda rows: {**collate(rows), ROWS: Rows(tuple(rows))}


def _weight(batch: dict[str, Any], rows: int) -> int:
    """What a mean over this batch is taken over: its labelled tokens, or its rows where it has no labels (preferences)."""
    return max(1, int((batch["labels"][..., 1:] != IGNORED).sum())) if "labels" in batch else rows


def _same(row: dict[str, Any], batch_row: dict[str, Any]) -> bool:
    """A batch's row may have lost columns that no model takes."""
    return all(name in row and row[name] == value for name, value in batch_row.items())


def _not_finite_weights(model: Any, *, learnt: bool) -> list[str]:
    """Names of the weights, of those that learn or of the frozen ones, that hold a number that is not finite."""
    import torch

    return [name for name, one in model.named_parameters() if one.requires_grad == learnt and not torch.isfinite(one).all()]


def _blame(bad_weights: list[str], guilty: list[str], rows: list[str]) -> str:
    if bad_weights:
        return f"The weights themselves hold numbers that are not finite ({len(bad_weights)} of them, first {bad_weights[0]})."
    if guilty and len(guilty) < len(rows):
        return f"Of its rows, {_listed(guilty)} by {'itself' if len(guilty) == 1 else 'themselves'} gives such numbers."
    return f"Its rows: {_listed(rows)}."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _one_row_too_large(names: list[str], rows: Sequence[Any]) -> AdvisorError:
    longest = max((len(row["input_ids"]) for row in rows if "input_ids" in row), default=0)
    size = f" ({longest} tokens)" if longest else ""
    return AdvisorError(
        f"one row at a time does not fit into memory{size}",
        where=_listed(names),
        do=SMALLER,
    )


def _random_states() -> dict[str, Any]:
    import numpy
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_states(states: dict[str, Any]) -> None:
    import numpy
    import torch

    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state_all(states["cuda"])
