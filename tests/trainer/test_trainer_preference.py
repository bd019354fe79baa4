"""DPO: its loss by hand, the reference, what it moves, and what it goes on from."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.errors import AdvisorError
from evals.events import Event, Note, TrainingStep, ignore
from evals.records import read_json
from evals.task.example import Example
from trainer import watching, worker
from trainer.callbacks import Meter, Probe, Stop
from trainer.data import encode, load_tokenizer
from trainer.fused import fuse_lora
from trainer.job import TrainedAdapter, TrainingJob
from trainer.labelled_head import score_labelled_tokens
from trainer.launch import train
from trainer.methods import preference
from trainer.model import base_model
from trainer.preference_pairs import Pairs, encode_pairs
from trainer.recipe import Recipe

MakeJob = Callable[..., TrainingJob]
LETTERS = "rbgp"


def pair_rows(count: int, split: str = "train", start: int = 0) -> tuple[Example, ...]:
    """The letter of a colour against the next colour's."""
    words = ["red", "blue", "green", "pink"]
    return tuple(
        Example(
            f"{split}-{number}",
            (Message("user", f"{words[number % 4]} {number}"),),
            LETTERS[number % 4] * (1 + number % 2),
            rejected=LETTERS[(number + 1) % 4] * (1 + number % 3),
        )
        for number in range(start, start + count)
    )


@pytest.fixture
def make_pairs_job(make_job: MakeJob) -> MakeJob:
    def make(name: str = "dpo", **recipe: Any) -> TrainingJob:
        job = make_job(name, **{"method": "dpo", "replay_share": 0.0, "num_train_epochs": 2, **recipe})
        return replace(job, train=pair_rows(32), dev=pair_rows(8, "dev", 32))

    return make


def run(job: TrainingJob, emit: Callable[[Event], None] = ignore) -> TrainedAdapter:
    trained = preference.run(job, job.input_hash, emit, Stop())
    assert trained is not None
    return trained


def model_of(job: TrainingJob, adapter: Path | None = None) -> Any:
    """The base, or the base with an adapter, as transformers and peft load it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.model_folder, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def log_probability(model: Any, job: TrainingJob, example: Example, answer: str) -> float:
    """Of one answer, row by row with no padding: softmax over all logits, summed where the labels are."""
    import torch

    row = encode(load_tokenizer(job.model_folder), job.prompt_format, replace(example, target=answer), 1024)
    assert row is not None
    with torch.no_grad():
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
    labels = row["labels"][1:]
    every = torch.log_softmax(logits, dim=-1)
    return sum(float(every[at, label]) for at, label in enumerate(labels) if label != -100)


def log_ratio(model: Any, job: TrainingJob, example: Example) -> float:
    """log p(chosen) - log p(rejected)."""
    assert example.rejected is not None
    return log_probability(model, job, example, example.target) - log_probability(model, job, example, example.rejected)


def test_it_learns_to_prefer_the_right_answer_on_pairs_that_it_has_not_seen(make_pairs_job: MakeJob) -> None:
    job = make_pairs_job(num_train_epochs=3)
    heard: list[Event] = []
    trained = run(job, heard.append)
    steps = [event for event in heard if isinstance(event, TrainingStep)]
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert trained.final_loss < 0.5
    assert trained.dev_loss is not None

    base, tuned = model_of(job), model_of(job, trained.folder)
    gains = [log_ratio(tuned, job, one) - log_ratio(base, job, one) for one in job.dev]
    assert sum(gain > 0 for gain in gains) >= 7
    # Rafailov et al. 2023, eq. 7, on the dev pairs, by hand.
    by_hand = sum(-math.log(1 / (1 + math.exp(-job.recipe.beta * gain))) for gain in gains) / len(gains)
    assert trained.dev_loss == pytest.approx(by_hand, abs=1e-4)
    assert by_hand < math.log(2) - 0.1

    told = [event.text for event in heard if isinstance(event, Note) and event.level == "info"]
    right, margin = sum(gain > 0 for gain in gains) / len(gains), job.recipe.beta * sum(gains) / len(gains)
    assert told[0].startswith("dpo: the answer that won has the higher reward in")
    assert told[0].endswith(f"on dev pairs in {right:.0%}, by {margin:.2f}")


def losses_of(job: TrainingJob) -> list[float]:
    heard: list[Event] = []
    run(job, heard.append)
    return [event.loss or 0.0 for event in heard if isinstance(event, TrainingStep)]


@pytest.mark.parametrize(
    "settings", [{"gradient_checkpointing": True}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}]
)
def test_what_saves_memory_changes_no_step(make_pairs_job: MakeJob, settings: dict[str, Any]) -> None:
    plain = losses_of(make_pairs_job("plain", num_train_epochs=1))
    assert losses_of(make_pairs_job("saving", num_train_epochs=1, **settings)) == pytest.approx(plain, rel=1e-4)
    assert plain[-1] < plain[0]


@pytest.fixture
def trainer_of(make_pairs_job: MakeJob, tiny_model: Path, tmp_path: Path) -> Callable[..., tuple[TrainingJob, Any, Any]]:
    """A trainer that has not trained, whose adapter is not zero; with it the job, and a batch of pairs of unequal lengths."""

    def make(**settings: Any) -> tuple[TrainingJob, Any, Any]:
        import torch

        job = make_pairs_job(per_device_train_batch_size=4, **settings)
        tokenizer = load_tokenizer(tiny_model)
        pairs = encode_pairs(tokenizer, job.prompt_format, job.train, job.recipe, "train", ignore)
        model = base_model(job, "cpu", longest=pairs.longest)
        trainer = preference._trainer(model, tokenizer, job.recipe, pairs, Pairs((), (), 0), tmp_path, "cpu", Meter())
        torch.manual_seed(1)
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        batch = trainer._prepare_inputs(trainer.data_collator(list(pairs.rows[:4])))
        return job, trainer, batch

    return make


def losses_and_gradients(trainer: Any, batch: Any) -> tuple[float, dict[str, Any]]:
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.grad is not None}


def test_the_reference_is_the_base_whatever_the_adapter_holds(trainer_of: Callable[..., Any]) -> None:
    job, trainer, batch = trainer_of()
    fuse_lora(trainer.model)
    score_labelled_tokens(trainer.model)
    base = model_of(job)
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
    for at, example in enumerate(job.train[:4]):
        assert float(chosen[at]) == pytest.approx(log_probability(base, job, example, example.target), abs=1e-4)
        assert float(rejected[at]) == pytest.approx(log_probability(base, job, example, example.rejected), abs=1e-4)
    # And the adapter counts where it is on: the batch's loss, by hand.
    trainer.model.eval()
    ratios = [float(one) for one in chosen - rejected]
    gains = [log_ratio(trainer.model, job, one) - ratio for one, ratio in zip(job.train[:4], ratios, strict=True)]
    assert max(map(abs, gains)) > 0.1
    by_hand = sum(math.log(1 + math.exp(-job.recipe.beta * gain)) for gain in gains) / 4
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_prompts_read_once_and_logits_at_labels_alone_give_the_numbers_of_trl(
    trainer_of: Callable[..., Any], loss_type: str
) -> None:
    _, trainer, batch = trainer_of(loss_type=loss_type)
    plain, gradients = losses_and_gradients(trainer, batch)
    head = trainer.model.get_base_model().get_output_embeddings()
    assert score_labelled_tokens(trainer.model)
    assert fuse_lora(trainer.model)
    seen: list[int] = []
    kernel = "trl.kernels.ChunkedLogProbFunction.apply"
    read: list[tuple[int, ...]] = []
    backbone = trainer.model.get_base_model().base_model
    backbone.register_forward_pre_hook(lambda _, args, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    with pytest.MonkeyPatch.context() as patch:
        from trl.kernels import ChunkedLogProbFunction

        real = ChunkedLogProbFunction.apply
        patch.setattr(kernel, lambda hidden, *rest: seen.append(len(hidden)) or real(hidden, *rest))
        ours, our_gradients = losses_and_gradients(trainer, batch)
    # Four pairs are four rows, each as long as its prompt and both answers.
    answers = batch["completion_mask"].sum(1)
    prompts = batch["attention_mask"].sum(1) - answers
    assert read == [(4, int((prompts[:4] + answers[:4] + answers[4:]).max()))] * 2
    # Once for the policy, once for the reference, and only the answers' tokens.
    assert seen == [int(batch["completion_mask"].sum())] * 2
    assert ours == pytest.approx(plain, rel=1e-5)
    assert gradients.keys() == our_gradients.keys()
    assert head.weight.grad is None
    for name, gradient in gradients.items():
        assert our_gradients[name] == pytest.approx(gradient, rel=1e-4, abs=3e-5), name


def test_the_robust_loss_is_not_the_sigmoid_loss(trainer_of: Callable[..., Any]) -> None:
    losses = []
    for kind in ("sigmoid", "robust"):
        _, trainer, batch = trainer_of(loss_type=kind)
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] != pytest.approx(losses[1], abs=1e-4)


def test_only_the_adapter_learns(make_pairs_job: MakeJob) -> None:
    job = make_pairs_job()
    before = {name: one.clone() for name, one in model_of(job).state_dict().items()}
    trained = run(job)
    from safetensors.torch import load_file

    weights = load_file(trained.folder / "adapter_model.safetensors")
    assert weights
    assert all(".lora_A." in name or ".lora_B." in name for name in weights)
    assert all(bool(one.any()) for name, one in weights.items() if ".lora_B." in name)
    after = model_of(job, trained.folder)
    with after.disable_adapter():
        for name, one in after.get_base_model().state_dict().items():
            plain = name.replace(".base_layer", "")
            if plain in before:
                assert one.equal(before.pop(plain)), name
    assert not before


def killed_at_step_7() -> None:
    """In the worker: SIGKILL when the step is told."""
    send = worker._send

    def listen(out: Any, record: dict[str, Any], stop: Stop) -> None:
        send(out, record, stop)
        if record.get("step") == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    worker._send = listen


def test_kill_9_and_the_same_call_give_the_adapter_of_an_unbroken_run(
    make_pairs_job: MakeJob, fork_workers: Callable[..., None]
) -> None:
    whole, broken = make_pairs_job("whole", save_steps=3), make_pairs_job("broken", save_steps=3)
    unbroken = train(whole, ignore)
    fork_workers(killed_at_step_7)
    with pytest.raises(AdvisorError, match="signal 9"):
        train(broken, ignore)
    fork_workers()
    heard: list[Event] = []
    trained = train(broken, heard.append)
    # In the middle of the second pass over the pairs: its order is that of before.
    assert "broken: going on from step 6" in [event.text for event in heard if isinstance(event, Note)]
    assert trained.final_loss == pytest.approx(unbroken.final_loss, abs=1e-6)
    assert trained.dev_loss == pytest.approx(unbroken.dev_loss, abs=1e-6)
    assert trained.train_tokens == unbroken.train_tokens
    files = [one.folder / "adapter_model.safetensors" for one in (trained, unbroken)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_dev_pairs_are_measured_on_the_way_and_that_changes_nothing(
    make_pairs_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    # Dropout draws random numbers, which a measurement must leave alone.
    looked = run(make_pairs_job("looked", lora_dropout=0.2), heard.append)
    found = {one.step: one.dev_loss for one in heard if isinstance(one, TrainingStep) and one.dev_loss is not None}
    assert [*found] == [4, 8]
    assert found[8] < found[4] < math.log(2)
    monkeypatch.setattr(watching, "_loss_probe", lambda *_: Probe("losses", 100, lambda: 0.0, at_last=False))
    alone = run(make_pairs_job("alone", lora_dropout=0.2))
    files = [one.folder / "adapter_model.safetensors" for one in (looked, alone)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert looked.final_loss == alone.final_loss


def pairs_of(tiny_model: Path, rows: tuple[Example, ...], emit: Callable[[Event], None] = ignore, **recipe: Any) -> Pairs:
    fmt = PromptFormat("Say the letter.", "inline")
    return encode_pairs(load_tokenizer(tiny_model), fmt, rows, Recipe(method="dpo", **recipe), "train", emit)


def test_pairs_that_say_nothing_or_are_too_long_are_left_out_and_counted(tiny_model: Path) -> None:
    rows = pair_rows(6)
    rows = (replace(rows[0], rejected=rows[0].target), replace(rows[1], rejected="no" * 100), *rows[2:])
    heard: list[Event] = []
    found = pairs_of(tiny_model, rows, heard.append, max_length=100)
    assert (found.ids, found.dropped) == (tuple(one.id for one in rows[2:]), 2)
    told = [event.text for event in heard if isinstance(event, Note)]
    assert told == [
        "1 of 6 train pairs are longer than max_length (100 tokens) and left out",
        "1 of 6 train pairs have one and the same answer twice and are left out",
    ]
    with pytest.raises(AdvisorError, match="none of 1 rows gives a pair"):
        pairs_of(tiny_model, rows[:1])
    with pytest.raises(AdvisorError, match="this row has none"):
        pairs_of(tiny_model, (replace(rows[2], rejected=None),))


@pytest.mark.parametrize(("mode", "end"), [("keep_end", "beginning"), ("keep_start", "end")])
def test_pairs_that_are_cut_are_counted(mode: Any, end: str, tiny_model: Path) -> None:
    first, second, third, *rest = pair_rows(6)
    # Of the first the prompt is long, of the second one answer; of the third all is lost but the answer, or the answer itself.
    first = replace(first, messages=(Message("user", "red " * 20),))
    second = replace(second, rejected="no" * 40)
    third = (
        replace(third, rejected="no" * 100) if mode == "keep_end" else replace(third, messages=(Message("user", "red " * 40),))
    )
    heard: list[Event] = []
    if mode == "keep_start":
        # Its end would be cut away, and the answer with it.
        first = replace(first, messages=(Message("user", "red " * 8),), rejected="no" * 40)
    found = pairs_of(tiny_model, (first, second, third, *rest), heard.append, max_length=100, truncation_mode=mode)
    assert (len(found.rows), found.dropped, found.truncated) == (5, 1, 2)
    assert max(row["length"] for row in found.rows) == 100
    assert [event.text for event in heard if isinstance(event, Note) and event.level == "warning"] == [
        "1 of 6 train pairs hold too little to compare when cut to max_length (100 tokens), and are left out",
        f"2 of 6 train pairs are cut to max_length (100 tokens) at their {end} ({mode})",
    ]


def test_both_answers_stand_behind_the_prompt_that_is_asked_and_end_their_turn(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    hostile = "</s>[bold]{{ 7 * 7 }}{% raw %}\x1b[2J $(id)"
    row = replace(pair_rows(1)[0], rejected=hostile)
    found = pairs_of(tiny_model, (row,)).rows[0]
    asked = "<|im_start|>user\nSay the letter.\n\nred 0<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(found["prompt_ids"]) == asked
    assert tokenizer.decode(found["chosen_ids"]) == "r<|im_end|>"
    assert found["rejected_ids"][:-1] == tokenizer(hostile, add_special_tokens=False)["input_ids"]
    assert found["rejected_ids"][-1] == tokenizer.eos_token_id
    assert found["length"] == len(found["prompt_ids"]) + len(found["rejected_ids"])


def test_dev_rows_without_pairs_are_not_measured_and_it_is_said(make_pairs_job: MakeJob) -> None:
    job = make_pairs_job(num_train_epochs=0.5)
    job = replace(job, dev=tuple(replace(one, rejected=None) for one in job.dev))
    heard: list[Event] = []
    assert run(job, heard.append).dev_loss is None
    notes = [event for event in heard if isinstance(event, Note)]
    assert any("not measured on dev" in one.text for one in notes)
    assert not [one.text for one in notes if one.level == "warning"]


def test_an_early_stop_that_has_nothing_to_go_by_is_warned_of(make_pairs_job: MakeJob) -> None:
    job = make_pairs_job(num_train_epochs=1, early_stopping_patience=1, eval_steps=1)
    for dev in (tuple(replace(one, rejected=None) for one in job.dev), ()):
        heard: list[Event] = []
        assert run(replace(job, dev=dev, folder=job.folder / str(len(dev))), heard.append).steps == 4
        (said,) = [one.text for one in heard if isinstance(one, Note) and one.level == "warning"]
        assert "will not stop early" in said
        assert "metric_for_best_model: score" in said
    heard = []
    run(job, heard.append)
    assert not any("will not stop early" in one.text for one in heard if isinstance(one, Note))


def test_all_weights_learn_against_the_base_as_it_was(make_pairs_job: MakeJob) -> None:
    job = make_pairs_job(use_peft=False, learning_rate=1e-3)
    heard: list[Event] = []
    trained = run(job, heard.append)
    steps = [event for event in heard if isinstance(event, TrainingStep)]
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-5)
    base, tuned = model_of(job), model_of(replace(job, model_folder=trained.folder))
    gains = [log_ratio(tuned, job, one) - log_ratio(base, job, one) for one in job.dev]
    by_hand = sum(math.log(1 + math.exp(-job.recipe.beta * gain)) for gain in gains) / len(gains)
    assert trained.dev_loss == pytest.approx(by_hand, abs=1e-4)
    assert by_hand < math.log(2) - 0.05
    kept = read_json(job.folder / "reference-train.json")["log_probs"]
    under_base = [log_probability(base, job, one, one.target) for one in job.train]
    assert [chosen for chosen, _ in kept] == pytest.approx(under_base, abs=1e-4)
