"""A base model without a chat template is given one: its marks are learnt, and no other row of its embeddings."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from evals.candidate import PromptFormat
from evals.engines.engine import Request
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.tokenizer import adapter_tokenizer, make_room, open_tokenizer
from evals.events import Event, TrainingStep, ignore
from tests.conftest import TINY, save_tokenizer
from tests.trainer.conftest import colour_rows
from trainer.callbacks import Stop
from trainer.job import TrainedAdapter, TrainingJob
from trainer.merge import merge
from trainer.methods import sft
from trainer.recipe import Recipe
from trainer.template import CHATML, END, START, taught

LETTERS = ["<|pad|>", "<|endoftext|>", *string.printable]


def save_base(folder: Path, *, tied: bool = True) -> Path:
    """Two layers over characters, as pretraining leaves a model: no chat template, no marks, text that ends with the end of text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({token: number for number, token in enumerate(LETTERS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<|pad|>", unk_token="?", eos_token="<|endoftext|>", model_max_length=256
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {**TINY, "vocab_size": len(LETTERS), "eos_token_id": 1, "tie_word_embeddings": tied}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    return folder


def learnt(base: Path, folder: Path, **recipe: Any) -> tuple[TrainingJob, TrainedAdapter]:
    settings = {"num_train_epochs": 12, "learning_rate": 1e-2, "save_steps": 40, "lora_r": 4, **recipe}
    job = TrainingJob(
        model_folder=base,
        recipe=Recipe(**settings),
        prompt_format=PromptFormat("Say the letter.", "inline"),
        train=colour_rows(64),
        dev=(),
        folder=folder,
        dtype="float32",
        purpose="taught",
    )
    trained = sft.run(job, job.input_hash, ignore, Stop())
    assert trained is not None
    return job, trained


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base", tied=request.param)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingJob, TrainedAdapter]:
    return learnt(base, tmp_path_factory.mktemp("jobs"))


def test_a_base_learns_the_template_and_to_end_its_turn(tuned: tuple[TrainingJob, TrainedAdapter], base: Path) -> None:
    job, trained = tuned
    assert adapter_tokenizer(trained.folder)
    before = HfEngine(ModelHandle(str(base), "float32", ignore))
    engine = before.with_adapter(trained.folder, "tuned")
    rows = colour_rows(4, "new")
    asked = [Request(row.id, job.prompt_format.messages(row), 8) for row in rows]
    prompt = engine.prompt_text(asked[0].messages)
    assert prompt == f"{START}user\nSay the letter.\n\nred 0{END}\n{START}assistant\n"
    answers = {one.id: one for one in engine.generate(asked)}
    assert [answers[row.id].text for row in rows] == [row.target for row in rows]
    # Each ended by the mark that training put there, long before its limit.
    assert [(one.truncated, one.output_tokens) for one in answers.values()] == [(False, 1)] * 4
    # The base itself is asked as before, with the tokeniser that it came with.
    assert before.prompt_text(asked[0].messages).startswith("User: ")
    assert before.handle.vocabulary == len(LETTERS)


def test_only_the_rows_of_the_marks_change_in_the_embeddings(tuned: tuple[TrainingJob, TrainedAdapter], base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    _, trained = tuned
    kept = load_file(trained.folder / "adapter_model.safetensors")
    tied = AutoModelForCausalLM.from_pretrained(base).config.tie_word_embeddings
    rows = {name: one for name, one in kept.items() if "lora_" not in name}
    # Two rows of the embeddings, and of the head where that is not the same matrix: nothing of the size of a vocabulary.
    assert [tuple(one.shape) for one in rows.values()] == [(2, 32)] * (1 if tied else 2)
    fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    grown = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    make_room(grown, len(LETTERS) + 2)
    engine = HfEngine(ModelHandle(str(base), "float32", ignore)).with_adapter(trained.folder, "tuned")
    with engine.active():
        merged = engine.handle.model.merge_and_unload()
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, start, now = (getattr(one, layer)().weight for one in (fresh, grown, merged))
        assert torch.equal(now[: len(LETTERS)], old)
        assert len(now) == len(LETTERS) + 2
        assert all(not torch.equal(now[at], start[at]) for at in (-1, -2))


def test_a_whole_model_is_saved_with_its_template(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    job, trained = learnt(base, tmp_path / "job", use_peft=False, learning_rate=3e-3)
    engine = HfEngine(ModelHandle(str(base), "float32", ignore)).with_adapter(trained.folder, "tuned")
    rows = colour_rows(4, "new")
    answers = {one.id: one for one in engine.generate([Request(row.id, job.prompt_format.messages(row), 8) for row in rows])}
    assert [answers[row.id].text for row in rows] == [row.target for row in rows]
    assert not any(one.truncated for one in answers.values())


def test_marks_that_the_vocabulary_has_are_not_added_again(tiny_model: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, None)
    _, own = open_tokenizer(tmp_path)
    new = taught(tmp_path, "sft")
    assert not own
    assert new.tokenizer.convert_ids_to_tokens(list(new.learnt)) == [START, END]
    assert max(new.learnt) < len(open_tokenizer(tmp_path)[0]) == len(new.tokenizer)
    assert new.tokenizer.chat_template == CHATML
    # With a template of its own, or where no answers are taught, a model keeps its tokeniser.
    assert taught(tiny_model, "sft").learnt == taught(tmp_path, "pretraining").learnt == taught(tmp_path, "dpo").learnt == ()


def test_new_rows_begin_as_the_mean_of_the_old_ones(base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = [one.weight.detach().clone() for one in (model.get_input_embeddings(), model.get_output_embeddings())]
    make_room(model, 10)
    assert len(model.get_input_embeddings().weight) == len(LETTERS)
    make_room(model, len(LETTERS) + 3)
    for old, layer in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert torch.equal(layer.weight[:-3], old)
        assert torch.allclose(layer.weight[-3:], old.mean(0).expand(3, -1))


def test_merged_weights_answer_with_the_template_too(
    tuned: tuple[TrainingJob, TrainedAdapter], base: Path, tmp_path: Path
) -> None:
    job, trained = tuned
    merge(trained.folder, base, tmp_path / "merged")
    merged = HfEngine(ModelHandle(str(tmp_path / "merged"), "float32", ignore))
    adapter = HfEngine(ModelHandle(str(base), "float32", ignore)).with_adapter(trained.folder, "tuned")
    asked = [Request(row.id, job.prompt_format.messages(row), 8) for row in colour_rows(4, "new")]
    told = [{one.id: (one.text, one.truncated) for one in engine.generate(asked)} for engine in (merged, adapter)]
    assert told[0] == told[1]
    assert merged.handle.vocabulary == len(LETTERS) + 2
    # Whatever else generates with it ends with the turn, too.
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["eos_token_id"] == merged.handle.tokenizer.convert_tokens_to_ids(END)


def test_going_on_from_a_checkpoint_gives_the_same_rows(
    tuned: tuple[TrainingJob, TrainedAdapter], base: Path, tmp_path: Path
) -> None:
    whole, trained = tuned
    job, stop = replace(whole, folder=tmp_path / "cut"), Stop()

    def ask_to_stop(event: Event) -> None:
        stop.asked |= isinstance(event, TrainingStep) and event.step == 50

    assert sft.run(job, job.input_hash, ask_to_stop, stop) is None
    (checkpoint,) = (job.folder / "checkpoints").glob("checkpoint-*")
    # No embeddings beside what learns: they are the base's.
    assert not [name for name in load_file(checkpoint / "adapter_model.safetensors") if name.endswith("embed_tokens.weight")]
    again = sft.run(job, job.input_hash, ignore, Stop())
    assert again is not None
    weights = [(one.folder / "adapter_model.safetensors").read_bytes() for one in (trained, again)]
    assert weights[0] == weights[1]


def test_how_far_the_tuned_model_is_from_a_base_with_fewer_tokens(
    tuned: tuple[TrainingJob, TrainedAdapter], base: Path
) -> None:
    before = HfEngine(ModelHandle(str(base), "float32", ignore))
    (far,) = before.divergence(before.with_adapter(tuned[1].folder, "tuned"), ["some text"])
    assert far > 0
