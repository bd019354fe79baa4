"""What is trained: LoRA and its kin, a base in 4 bits, or all weights; that, and nothing else."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.helpers import rescale_adapter_scale
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from evals.engines.engine import Request
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError
from evals.events import Event, Note, TrainingStep, ignore
from evals.records import file_hash
from tests.conftest import TINY
from tests.trainer import faults
from trainer import answer_trainer, launch, quantised
from trainer.callbacks import Stop
from trainer.fused import answer_loss, fuse_lora, head_loss
from trainer.job import TrainedAdapter, TrainingJob
from trainer.launch import train
from trainer.methods import sft
from trainer.model import base_model, peft_config, run_in_bf16
from trainer.quantised import check_quantiser, keep_trainable
from trainer.recipe import Recipe
from trainer.saving import load_weights, save_weights
from trainer.targets import check_names, check_targets

MakeJob = Callable[..., TrainingJob]
Fork = Callable[..., None]
FULL = {"use_peft": False, "learning_rate": 1e-2}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "qlora": {"load_in_4bit": True},
    "full": FULL,
}


def needs_quantiser(kind: str) -> None:
    if kind == "qlora" and quantised.unusable("cpu"):
        pytest.skip(quantised.unusable("cpu"))


def tensors(model: Any) -> dict[str, Any]:
    """Every number that the model holds, by name: weights, buffers, and the scales of those in 4 bits."""
    held = {name: one.detach().clone() for name, one in [*model.named_parameters(), *model.named_buffers()]}
    for name, one in model.named_parameters():
        for part, value in (one.quant_state.as_dict() if getattr(one, "quant_state", None) else {}).items():
            if isinstance(value, torch.Tensor):
                held[f"{name}.{part}"] = value.clone()
    return held


@dataclass
class Trained:
    """A training in this process: its trainer, the numbers of its model before, and what came of it."""

    trainer: Any
    before: dict[str, Any]
    adapter: TrainedAdapter
    losses: list[float]


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainingJob], Trained]:
    def run(job: TrainingJob) -> Trained:
        kept: dict[str, Any] = {}
        finish = answer_trainer.finish

        def watched(*args: Any, **kwargs: Any) -> Any:
            kept.update(trainer=args[2], before=tensors(args[2].model))
            return finish(*args, **kwargs)

        events: list[Event] = []
        monkeypatch.setattr(answer_trainer, "finish", watched)
        job.folder.mkdir(parents=True, exist_ok=True)
        adapter = sft.run(job, job.input_hash, events.append, Stop())
        monkeypatch.setattr(answer_trainer, "finish", finish)
        assert adapter is not None
        losses = [one.loss or 0.0 for one in events if isinstance(one, TrainingStep)]
        return Trained(kept["trainer"], kept["before"], adapter, losses)

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_learns_learns_and_nothing_else_moves(
    kind: str, dtype: str, make_job: MakeJob, run_here: Callable[[TrainingJob], Trained]
) -> None:
    needs_quantiser(kind)
    done = run_here(replace(make_job(kind, num_train_epochs=2, **KINDS[kind]), dtype=dtype))
    after = tensors(done.trainer.model)
    assert after.keys() == done.before.keys()
    learning = {name for name, one in done.trainer.model.named_parameters() if one.requires_grad}
    moved = {name for name in after if not torch.equal(after[name], done.before[name])}
    assert moved == learning
    names = [name.rsplit("layers.0.", 1)[-1] for name in learning if "layers.0." in name]
    if kind == "full":
        assert learning == {name for name, _ in done.trainer.model.named_parameters()}
    else:
        matrices = 3 if kind == "dora" else 2
        assert len(names) == 7 * matrices
        assert all("lora_" in name for name in learning)
    # Whatever the base is held in, what learns is fp32, and so is all that the optimiser keeps of it.
    state = done.trainer.optimizer.state
    kept = [one for each in state.values() for one in each.values() if one.dim()]
    assert len(kept) == 2 * len(learning)
    assert {one.dtype for one in kept} == {after[name].dtype for name in learning} == {torch.float32}
    rest = {one.dtype for name, one in done.trainer.model.named_parameters() if name not in learning}
    assert rest == ({torch.uint8} if kind == "qlora" else set()) | ({getattr(torch, dtype)} if kind != "full" else set())
    # Its own loss, from the first step to the last, and on rows that it has not seen.
    assert done.losses[-2] < 0.75 * done.losses[0]
    assert done.adapter.dev_loss is not None
    assert done.adapter.dev_loss < 0.75 * done.losses[0]


@pytest.mark.parametrize("kind", ["lora", "rslora", "qlora"])
def test_an_adapter_at_scale_zero_is_the_base(kind: str, make_job: MakeJob) -> None:
    needs_quantiser(kind)
    job, ids = make_job(kind, **KINDS[kind]), torch.arange(3, 40)[None]
    bare = base_model(job, "cpu", 40).eval()
    model = get_peft_model(base_model(job, "cpu", 40), peft_config(job.recipe)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
        expected, tuned = bare(ids).logits, model(ids).logits
        assert not torch.allclose(tuned, expected, atol=1e-2)
        with rescale_adapter_scale(model, 0):
            assert torch.equal(model(ids).logits, expected)


def test_rank_stabilised_scaling_is_alpha_by_the_root_of_the_rank(make_job: MakeJob) -> None:
    for kind, expected in (("lora", 32 / 4), ("rslora", 32 / 2)):
        job = make_job(kind, **KINDS[kind])
        model = get_peft_model(base_model(job, "cpu", 40), peft_config(job.recipe))
        ids, layer = torch.arange(3, 40)[None], model.base_model.model.model.layers[1].mlp.down_proj
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        hidden = torch.randn(2, 64)
        by_hand = layer.base_layer(hidden) + expected * (
            hidden @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        )
        unfused = model(ids).logits
        assert fuse_lora(model) == 14
        torch.testing.assert_close(layer(hidden), by_hand)
        torch.testing.assert_close(model(ids).logits, unfused)


def dequantised(job: TrainingJob, packed: Any) -> Any:
    """The model with ordinary weights that have the values of those in 4 bits, and the same adapter."""
    from bitsandbytes.functional import dequantize_4bit

    plain = get_peft_model(AutoModelForCausalLM.from_pretrained(job.model_folder, dtype=torch.float32), peft_config(job.recipe))
    own = dict(plain.named_parameters())
    with torch.no_grad():
        for name, weight in packed.named_parameters():
            state = getattr(weight, "quant_state", None)
            own[name].copy_(dequantize_4bit(weight, state) if state else weight)
    return plain


def loss_and_gradients(model: Any) -> tuple[float, dict[str, Any]]:
    model.train()
    model.zero_grad()
    ids = torch.arange(3, 67).view(2, 32)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss.detach()), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.fixture
def wide_job(make_job: MakeJob, tmp_path: Path) -> TrainingJob:
    """Rows of its matrices hold whole blocks of 64 weights, which bitsandbytes' own form for inference needs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**TINY, "hidden_size": 64, "intermediate_size": 128})).save_pretrained(tmp_path / "wide")
    return replace(make_job("wide-job", load_in_4bit=True), model_folder=tmp_path / "wide")


def packed_model(job: TrainingJob) -> Any:
    torch.manual_seed(3)
    model = get_peft_model(base_model(job, "cpu", 32), peft_config(job.recipe))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def evaluate_once(model: Any) -> None:
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 35)[None])


def test_a_base_in_4_bits_trains_right_after_an_evaluation(wide_job: TrainingJob) -> None:
    needs_quantiser("qlora")
    from bitsandbytes.nn import Linear4bit

    model = packed_model(wide_job)
    plain = dequantised(wide_job, model)
    expected_loss, expected = loss_and_gradients(plain)
    for _ in range(2):
        loss, found = loss_and_gradients(model)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert found.keys() == expected.keys()
        for name, one in expected.items():
            torch.testing.assert_close(found[name], one, rtol=1e-3, atol=1e-5 * float(one.abs().max()) + 1e-7, msg=name)
        evaluate_once(model)

    # The fault, planted: with bitsandbytes' own setting the same evaluation changes what is trained.
    layers = [one for one in model.modules() if isinstance(one, Linear4bit)]
    assert len(layers) == 14
    for layer in layers:
        layer.support_avx512bf16_for_cpu = Linear4bit(8, 8).support_avx512bf16_for_cpu
    if not layers[0].support_avx512bf16_for_cpu:
        pytest.skip("this processor has no units for which bitsandbytes repacks its weights")
    evaluate_once(model)
    try:
        loss, found = loss_and_gradients(model)
    except RuntimeError:
        return
    assert max(float((found[name] - one).abs().max() / one.abs().max()) for name, one in expected.items()) > 0.05


def test_every_layer_in_4_bits_is_kept_trainable_and_the_head_is_not_among_them(make_job: MakeJob) -> None:
    needs_quantiser("qlora")
    model = base_model(make_job("qlora", load_in_4bit=True), "cpu", 32)
    assert keep_trainable(model) == 14
    assert model.lm_head.weight.dtype == torch.float32
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.quant_type == "nf4"
    assert weight.quant_state.nested


def test_without_a_quantiser_nothing_is_loaded(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(launch.subprocess, "Popen", never)
    for name in [one for one in sys.modules if one.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    quantised.unusable.cache_clear()
    request.addfinalizer(quantised.unusable.cache_clear)
    job = make_job("qlora", load_in_4bit=True)
    with pytest.raises(AdvisorError, match="bitsandbytes is not installed") as caught:
        train(job, ignore)
    assert "method: lora" in caught.value.do
    assert not job.folder.exists()
    with pytest.raises(AdvisorError, match="is not installed"):
        base_model(job, "cpu", 32)
    check_quantiser(replace(job.recipe, load_in_4bit=False), "cpu")


def test_a_quantiser_that_gives_other_weights_is_not_used(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    needs_quantiser("qlora")
    import bitsandbytes.functional as bits

    real = bits.dequantize_4bit
    monkeypatch.setattr(bits, "dequantize_4bit", lambda *args: -real(*args))
    quantised.unusable.cache_clear()
    request.addfinalizer(quantised.unusable.cache_clear)
    with pytest.raises(AdvisorError, match="gives wrong weights here"):
        check_quantiser(Recipe(load_in_4bit=True), "cpu")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("q_proj", "qproj"), r"`qproj` is not in this model"),
        (("c_attn",), r"`c_attn` is not in this model"),
        (("embed_tokens",), r"`embed_tokens` is or takes in model.embed_tokens, which is no linear layer \(Embedding\)"),
        (("lm_head",), r"`lm_head` is or takes in the output head"),
        (("q_proj", "self_attn"), r"`self_attn` is or takes in .*, which is no linear layer \(LlamaAttention\)"),
        # A text is peft's pattern over whole names, which a name's end is not.
        (r".*\.(q|x)_projection", r"a text, is a pattern of whole names, and no layer of this model has such a name\n"),
        ("q_proj", r"a pattern of whole names, and no layer of this model has such a name: names are a list: \[q_proj\]\n"),
        ("q_proj,v_proj", r"names are a list: \[q_proj, v_proj\]\n"),
        # peft would fail at the attention itself, once the weights are loaded.
        (r".*self_attn.*", r"takes in model.layers.0.self_attn, which is no linear layer \(LlamaAttention\)"),
        (r".*(_proj|head)", "takes in the output head"),
        ("(", "is no pattern of module names"),
    ],
)
def test_target_modules_that_are_not_there_are_named_with_those_that_are(
    wanted: str | tuple[str, ...], message: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(AdvisorError, match=message) as caught:
        check_targets(Recipe(lora_target_modules=wanted), tiny_model)
    if wanted != "(":
        for leaf in ("q_proj (2)", "k_proj (2)", "v_proj (2)", "o_proj (2)", "gate_proj (2)", "up_proj (2)", "down_proj (2)"):
            assert leaf in caught.value.do
        assert "lm_head" not in caught.value.do


def test_target_modules_that_are_there_are_taken(make_job: MakeJob) -> None:
    for wanted, count in ((("q_proj", "self_attn.v_proj"), 4), (("layers.1.mlp.up_proj",), 1), (r".*\.mlp\..*_proj", 6)):
        job = make_job("some", lora_target_modules=wanted)
        model = base_model(job, "cpu", 32)
        check_names(wanted, model)
        found = [name for name, _ in get_peft_model(model, peft_config(job.recipe)).named_modules() if name.endswith("lora_A")]
        assert len(found) == count


def test_a_worker_is_told_which_module_is_missing(make_job: MakeJob, fork_workers: Fork) -> None:
    with pytest.raises(AdvisorError, match=r"`c_attn` is not in this model"):
        train(make_job("missing", lora_target_modules=("c_attn",)), ignore)


def test_the_gradient_of_a_head_that_learns_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (23,))
    expected = functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    # Ten rows at a time: three products, the last a smaller one.
    monkeypatch.setattr("trainer.fused.HEAD_BYTES", 10 * 4 * 50)
    loss = head_loss().apply(hidden, weight, labels)
    torch.testing.assert_close(loss, expected)
    for found, one in zip(torch.autograd.grad(3 * loss, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-5)


def test_all_weights_get_the_gradients_of_torch(make_job: MakeJob) -> None:
    job = make_job("full", **FULL)
    ids = torch.randint(3, 90, (3, 20), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:, :8] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    plain, lean = base_model(job, "cpu", 20), base_model(job, "cpu", 20)
    expected = plain(**batch).loss
    expected.backward()
    total, count = answer_loss(lean, batch)
    (total / count).backward()
    torch.testing.assert_close(total / count, expected)
    # The head is the embedding too: both their gradients are in it.
    for (name, one), other in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_products_in_bf16_leave_weights_and_gradients_in_fp32(make_job: MakeJob) -> None:
    job = make_job("full", **FULL)
    wide, narrow = base_model(job, "cpu", 20), base_model(job, "cpu", 20)
    run_in_bf16(narrow, "cpu")
    seen = []
    narrow.model.layers[1].mlp.up_proj.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    ids = torch.randint(3, 90, (2, 20), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    losses = []
    for model in (wide, narrow):
        total, count = answer_loss(model, batch)
        (total / count).backward()
        losses.append(float((total / count).detach()))
    assert seen == [torch.bfloat16]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert losses[1] != losses[0]
    assert {one.dtype for one in narrow.parameters()} == {one.grad.dtype for one in narrow.parameters()} == {torch.float32}
    for one, other in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert functional.cosine_similarity(one.grad.flatten(), other.grad.flatten(), dim=0) > 0.99


def recomputed_layers(trainer: Any) -> int:
    """How many decoder layers of one step are to be run again on the way back."""
    seen: list[int] = []
    base = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    for layer in base.model.layers:
        if hasattr(layer, "_gradient_checkpointing_func"):
            again = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = lambda *args, again=again, **kwargs: (seen.append(1), again(*args, **kwargs))[
                1
            ]
    trainer.training_step(trainer.model.train(), next(iter(trainer.get_train_dataloader())))
    return len(seen)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("instruction", ["Say.", "Say the letter with which the colour begins, and nothing else at all."])
def test_checkpointing_changes_no_loss(
    kind: str, instruction: str, make_job: MakeJob, run_here: Callable[[TrainingJob], Trained]
) -> None:
    losses, again = [], []
    for saving in (False, True):
        job = make_job(f"{kind}-{saving}", rows=16, num_train_epochs=1, gradient_checkpointing=saving, **KINDS[kind])
        job = replace(job, prompt_format=replace(job.prompt_format, instruction=instruction))
        done = run_here(job)
        losses.append(done.losses)
        assert done.trainer.model.is_gradient_checkpointing == saving
        again.append(recomputed_layers(done.trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert again == [0, 2]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_hash(path) for path in folder.iterdir() if path.name != "card.json" and path.suffix != ".md"}


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return {}


@pytest.fixture
def trained_full(make_job: MakeJob, fork_workers: Fork, kept: dict[str, Any]) -> tuple[TrainingJob, TrainedAdapter]:
    if not kept:
        job = make_job("full", **FULL)
        kept["both"] = job, train(job, ignore)
    both: tuple[TrainingJob, TrainedAdapter] = kept["both"]
    return both


def test_all_weights_are_saved_as_a_model_that_anything_can_load(
    trained_full: tuple[TrainingJob, TrainedAdapter], tiny_model: Path
) -> None:
    job, trained = trained_full
    assert trained.folder == job.folder / "model"
    stored = load_file(trained.folder / "model.safetensors")
    assert {one.dtype for one in stored.values()} == {torch.float32}
    assert stored.keys() == load_file(tiny_model / "model.safetensors").keys()
    for path in [*tiny_model.glob("tokenizer*"), *tiny_model.glob("*.jinja"), tiny_model / "generation_config.json"]:
        assert file_hash(trained.folder / path.name) == file_hash(path), path.name
    own, was = (json.loads((folder / "config.json").read_text()) for folder in (trained.folder, tiny_model))
    assert {name for name in {*own, *was} if own.get(name) != was.get(name)} <= {"transformers_version"}
    assert not (trained.folder / "training_args.bin").exists()
    again = train(job, lambda event: pytest.fail("it was trained again"))
    assert again.reused
    assert again.folder == trained.folder


@pytest.mark.parametrize(
    "fault",
    [
        partial(faults.killed_in_step, 7),
        partial(faults.killed_writing, "optimizer.pt", 2),
        partial(faults.killed_before_moving, "model"),
    ],
    ids=["in a step", "writing a checkpoint", "saving the model"],
)
def test_all_weights_go_on_exactly_after_kill_9(
    fault: faults.Fault, make_job: MakeJob, fork_workers: Fork, trained_full: tuple[TrainingJob, TrainedAdapter]
) -> None:
    job = make_job("killed", **FULL)
    fork_workers(fault)
    with pytest.raises(AdvisorError, match="signal 9"):
        train(job, ignore)
    fork_workers()
    trained = train(job, ignore)
    assert digests(trained.folder) == digests(trained_full[1].folder)
    assert trained.final_loss == trained_full[1].final_loss
    assert not (job.folder / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_weights_are_put_back_bit_for_bit(kind: str, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(kind, **KINDS[kind])
    model = base_model(job, "cpu", 20)
    if kind == "lora":
        model = get_peft_model(model, peft_config(job.recipe))
    folder = save_weights(model, tmp_path, "best-1")
    before = tensors(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(1)
    load_weights(model, folder)
    assert all(torch.equal(one, before[name]) for name, one in tensors(model).items())


def test_the_best_weights_on_dev_are_those_that_are_kept(make_job: MakeJob, fork_workers: Fork) -> None:
    events: list[Event] = []
    stopping = {"early_stopping_patience": 2, "eval_steps": 2, "learning_rate": 0.05, "warmup_steps": 0}
    job = make_job("best", **{**FULL, **stopping})
    # What dev wants is another colour's letter: the better the rows are learnt, the worse it becomes.
    wrong = {one.target: other.target for one, other in zip(job.dev, (*job.dev[1:], job.dev[0]), strict=True)}
    trained = train(replace(job, dev=tuple(replace(one, target=wrong[one.target]) for one in job.dev)), events.append)
    assert any("the weights of step" in one.text and "kept" in one.text for one in events if isinstance(one, Note))
    measured = [one.dev_loss for one in events if isinstance(one, TrainingStep) and one.dev_loss is not None]
    assert trained.dev_loss == pytest.approx(min(measured), rel=1e-5)
    last = AutoModelForCausalLM.from_pretrained(trained.folder)
    assert all(torch.isfinite(one).all() for one in last.parameters())


def engine_of(folder: Path) -> HfEngine:
    return HfEngine(ModelHandle(str(folder), "float32", ignore))


def answers(engine: HfEngine, job: TrainingJob) -> list[str]:
    asked = [Request(row.id, tuple(job.prompt_format.messages(row)), 4) for row in job.dev]
    told = {one.id: one.text for one in engine.generate(asked)}
    return [told[row.id] for row in job.dev]


def test_the_engine_answers_with_all_the_weights_that_were_trained(
    trained_full: tuple[TrainingJob, TrainedAdapter], tiny_model: Path, tmp_path: Path
) -> None:
    job, trained = trained_full
    base = engine_of(tiny_model)
    before = answers(base, job)
    tuned = base.with_adapter(trained.folder, "tuned")
    assert tuned.name == f"{tiny_model.name}+tuned"
    assert tuned.fingerprint == engine_of(trained.folder).fingerprint != base.fingerprint
    assert answers(tuned, job) == answers(engine_of(trained.folder), job) != before
    right = [row.target for row in job.dev]
    assert sum(one == other for one, other in zip(answers(tuned, job), right, strict=True)) > sum(
        one == other for one, other in zip(before, right, strict=True)
    )
    # Loaded once, however often it is named, and let go with the last who has it; the base is what it was.
    assert base.with_adapter(trained.folder, "again").handle is tuned.handle
    assert answers(base, job) == before
    texts = [row.messages[-1].content for row in job.dev]
    assert base.divergence(base, texts) == pytest.approx([0.0] * len(texts), abs=1e-6)
    assert all(one > 1e-3 for one in base.divergence(tuned, texts))
    del tuned
    gc.collect()
    assert not base.handle._trained


def test_all_weights_of_another_base_are_refused(trained_full: tuple[TrainingJob, TrainedAdapter], tiny_gemma: Path) -> None:
    with pytest.raises(AdvisorError, match="of another base"):
        engine_of(tiny_gemma).with_adapter(trained_full[1].folder, "tuned")


def test_an_adapter_of_a_base_in_4_bits_is_asked_on_the_base_as_it_is(
    make_job: MakeJob, fork_workers: Fork, tiny_model: Path
) -> None:
    needs_quantiser("qlora")
    job = make_job("qlora", load_in_4bit=True)
    trained = train(job, ignore)
    tuned = engine_of(tiny_model).with_adapter(trained.folder, "tuned")
    assert {one.dtype for one in load_file(trained.folder / "adapter_model.safetensors").values()} == {torch.float32}
    answers(tuned, job)
    assert {one.dtype for name, one in tuned.handle.model.named_parameters() if "lora_" not in name} == {torch.float32}
    assert "quantization_config" not in json.loads((trained.folder / "adapter_config.json").read_text())
