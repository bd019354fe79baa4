"""What a tuned model is asked, and with which recipe: the same prompt format for training it and for scoring it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from advisor.flow.pairs import usable_pairs
from advisor.flow.raft import AS_RENDERED, raft_pipeline
from advisor.flow.session import Session
from advisor.flow.training_rows import measured_rows, training_rows
from baselines.prompts.prompt import Prompt, answer_format
from baselines.rag.candidate import under
from evals.candidate import Candidate, PromptFormat
from evals.engines.hf import HfEngine
from evals.engines.machine import measure_machine
from evals.errors import Problem, ProblemsError
from evals.events import Note
from evals.records import content_hash, read_json, write_json
from evals.scoring import Scoring, scoring_of
from evals.task.example import Example
from evals.task.load import Task
from trainer.estimate import Estimate, estimate
from trainer.footprint import footprint
from trainer.job import TrainingJob
from trainer.quantised import check_quantiser
from trainer.recipe import Recipe, recommended_recipe
from trainer.replay import Replay, base_replies, drawn, prompts, rows_for, wanted_rows
from trainer.targets import check_targets
from trainer.work import learnt_rows, work_of

PROBE_EPOCHS = 4.0
# A short training takes at least so many steps, whatever its rows: few would be undertrained, and the curve would be of steps
# instead of rows. (SmolLM2 learns form and extraction in about 100 steps of 8 rows; docs/training.md.)
PROBE_STEPS = 100
# It measures dev so often on its way, and stops after so many measurements without a lower loss.
MEASUREMENTS, PATIENCE = 10, 3


def short_instruction(text: str) -> str:
    """The first paragraph: weights learn the rest from the rows, and each later request is that much cheaper."""
    return text.split("\n\n", 1)[0].strip()


def recipe_for(task: Task, engine: HfEngine) -> Recipe:
    """The recommended recipe with what the task file states. Raises ProblemsError where that is wrong, or would do nothing."""
    given, where = task.spec.train, str(task.folder / "task.yaml")
    if given.get("method") == "dpo" and usable_pairs(task):
        why = "draws answers where pairs are made of the task's rows, and the task has pairs of its own: leave it out"
        if idle := [Problem(where, 0, f"train.{key}", why) for key in ("num_generations", "temperature") if key in given]:
            raise ProblemsError(idle)
    recipe = recommended_recipe(
        rows=len(task.documents) if given.get("method") == "pretraining" else len(task.train),
        parameters=engine.parameters,
        overrides=given,
        where=where,
        seed=task.spec.seed,
        context_length=engine.context_length,
    )
    # Documents teach nothing of the instruction, so that no part of it becomes needless.
    full = recipe.method == "pretraining" and "instruction" not in given
    return replace(recipe, instruction="full") if full else recipe


def require_trainable(task: Task, engine: HfEngine) -> None:
    """Raises AdvisorError where the recipe asks for what this machine or this model does not have; loads no weights."""
    recipe = recipe_for(task, engine)
    if recipe.load_in_4bit:
        check_quantiser(recipe, engine.handle.device)
    check_targets(recipe, engine.handle.folder)


def curve_recipe(recipe: Recipe, rows: int, whole: int) -> Recipe:
    """The recipe of a point of the learning curve: `rows` of the `whole` training rows.

    Every point has the same cap on steps: one pass over the largest subset, half of the rows, so that each sees all of its rows; no
    fewer than `PROBE_STEPS`. A small one is seen more often, up to the cap, and stops when dev's loss no longer falls. No replay:
    what a point forgets is not asked.
    """
    plain = replace(recipe, replay_share=0.0, max_steps=0)
    cap = max(PROBE_STEPS, plain.steps_of_a_pass(whole // 2))
    passes = max(PROBE_EPOCHS, PROBE_STEPS / plain.steps_of_a_pass(rows))
    return replace(
        plain,
        num_train_epochs=passes,
        max_steps=cap,
        early_stopping_patience=PATIENCE,
        eval_steps=max(1, cap // MEASUREMENTS),
    )


def prompt_format(task: Task, recipe: Recipe) -> PromptFormat:
    """What is written around the turns of a row. A RAFT training's rows bring it with them, out of the pipeline."""
    if recipe.method == "raft":
        return AS_RENDERED
    text = task.instruction if recipe.instruction == "full" else short_instruction(task.instruction)
    return PromptFormat(text, "inline")


def job_for(
    task: Task, session: Session, recipe: Recipe, rows: Sequence[Example], folder: Path, purpose: str, *, scored: bool = True
) -> TrainingJob:
    """Training sees train and dev only: the test rows are not among its arguments.

    `scored`: dev's answers are written and scored on the way. A recipe that chooses the best by them has it so in any case.
    """
    handle, fmt = session.weights.handle, prompt_format(task, recipe)
    train = training_rows(task, session, recipe, rows, fmt, folder)
    return TrainingJob(
        model_folder=handle.folder,
        recipe=recipe,
        prompt_format=fmt,
        train=train,
        dev=measured_rows(task, session, recipe, folder),
        folder=folder,
        dtype=handle.dtype,
        purpose=purpose,
        replay=_replay(task, session, recipe, learnt_rows(handle.tokenizer, recipe, train), folder),
        scoring=_scoring(task, session, recipe) if scored or recipe.metric_for_best_model == "score" else None,
    )


def _scoring(task: Task, session: Session, recipe: Recipe) -> Scoring | None:
    """As the tuned candidate will be scored. What was said once of a metric that a training cannot measure is enough."""
    found = scoring_of(task, answer_format(task, session.weights).max_new_tokens)
    if found is None and recipe.metric_for_best_model != "score":
        session.on_event(Note(f"{task.metric} asks another model: while training, dev is measured by its loss alone"))
    return found


def expected(task: Task, engine: HfEngine, recipe: Recipe, rows: Sequence[Example], *, memory: bool = False) -> Estimate:
    """What a training of these `rows` (a job's, or `foreseen_rows`) will take on this machine, by the trainer's formula on the rows as it
    will encode them.

    Its memory only where asked for: that builds the model's shapes. Nothing is asked of the model; what it would be asked for first
    (replies for replay, answers of its own) is taken to be as long as what stands for it.
    """
    fmt, handle = prompt_format(task, recipe), engine.handle
    learnt = learnt_rows(handle.tokenizer, recipe, rows)
    stand_ins = _users_replay(task, recipe, learnt)
    if not task.replay:
        stand_ins = tuple(Replay(text, text, True) for text in prompts()[: rows_for(recipe.replay_share, learnt)])
    work = work_of(handle.tokenizer, fmt, recipe, rows, task.dev, stand_ins)
    size = None
    if memory:
        batch = work.longest(recipe.per_device_train_batch_size)
        size = footprint(handle.folder, recipe, batch, handle.dtype, handle.device)
    return estimate(recipe, work, engine.parameters, measure_machine(), handle.dtype, size)


def in_words(found: Estimate) -> str:
    """Said before a training, so that nobody waits for what does not pay."""
    slow = "; this processor has no fast bf16 units" if measure_machine().slow else ""
    memory = "" if found.memory_mib is None else f" and {found.memory_mib:,.0f} MiB"
    return f"about {found.seconds / 60:.1f} minutes of training ({found.steps} steps){memory} expected{slow}"


def too_little_replay(task: Task, recipe: Recipe, rows: int) -> str:
    """What is said where there are too few replay rows for the recipe's share beside `rows` of the task; empty where there are enough."""
    wanted = wanted_rows(recipe.replay_share, rows)
    count = rows_for(recipe.replay_share, rows, len(task.replay) if task.replay else None)
    if count == wanted:
        return ""
    there = "rows in `data.replay`" if task.replay else "shipped prompts (`data.replay` can name more rows of your own)"
    return (
        f"replay: {count / (count + rows):.2%} of all rows, not the {recipe.replay_share:.2%} of `replay_share`: {wanted:,} are wanted "
        f"beside {rows:,} rows, and there are {count:,} {there}"
    )


def _users_replay(task: Task, recipe: Recipe, rows: int) -> tuple[Replay, ...]:
    """Rows of the task's `data.replay`, as many as the recipe's share beside `rows` of the task; none where there is no such set."""
    count = rows_for(recipe.replay_share, rows, len(task.replay))
    return drawn([row.example for row in task.replay], count, recipe.seed)


def _replay(task: Task, session: Session, recipe: Recipe, rows: int, folder: Path) -> tuple[Replay, ...]:
    """Rows of the user's set, or the base's replies for this recipe, asked once and kept beside the job."""
    if told := too_little_replay(task, recipe, rows):
        session.on_event(Note(told, "warning"))
    if task.replay:
        return _users_replay(task, recipe, rows)
    count = rows_for(recipe.replay_share, rows)
    if not count:
        return ()
    key = content_hash([session.engine.fingerprint, recipe.seed, prompts(), count])
    path = folder.parent / "replay.json"
    if path.is_file() and (kept := read_json(path)).get("input_hash") == key:
        return tuple(Replay.of(one) for one in kept["replies"])
    replies = base_replies(session.engine, count, recipe.seed, session.on_event)
    write_json(path, {"input_hash": key, "replies": replies})
    return replies


def asked_as_trained(task: Task, session: Session, recipe: Recipe, adapter: Path, name: str, folder: Path) -> Candidate:
    """The candidate of a training's weights: of RAFT the pipeline that it was rendered with (`folder` is the run's), else a prompt."""
    return asked_by(task, session, recipe, session.weights.with_adapter(adapter, name), name, folder)


def asked_by(task: Task, session: Session, recipe: Recipe, engine: HfEngine, name: str, folder: Path) -> Candidate:
    """As `asked_as_trained`, of weights that are open already, the base's own among them."""
    if recipe.method == "raft":
        return under(raft_pipeline(task, session, recipe, folder), engine, name)
    return _prompt(task, engine, name, prompt_format(task, recipe))


def tuned_candidate(task: Task, session: Session, adapter: Path, name: str, fmt: PromptFormat) -> Prompt:
    return _prompt(task, session.weights.with_adapter(adapter, name), name, fmt)


def _prompt(task: Task, engine: HfEngine, name: str, fmt: PromptFormat) -> Prompt:
    return Prompt(name, engine, fmt, answer_format(task, engine), kind="tuned")
