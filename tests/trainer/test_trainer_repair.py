"""Weights between the base and what was trained: by identities that hold exactly, on a model of two layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError, UsageError
from evals.events import ignore
from tests.random_adapter import fp32, random_adapter, trained
from trainer import repair
from trainer.adapters import WEIGHTS
from trainer.card import read_card, write_card
from trainer.checkpoints import NEEDED, Spent, keep_weights, mark_complete
from trainer.job import TrainingJob
from trainer.launch import train
from trainer.remedies import remedies
from trainer.repair import Arm, Source, differ_in_seed, early, line, source, write_arm
from trainer.saving import save_weights

MakeJob = Callable[..., TrainingJob]
ROWS = [[5, 9, 20, 33], [7, 8, 9, 10, 11, 12, 13]]


@pytest.fixture
def adapter(make_job: MakeJob) -> Callable[..., Source]:
    def make(name: str, seed: int, **recipe: Any) -> Source:
        return source(name, random_adapter(make_job(f"{name}/training", seed=seed, **recipe), seed))

    return make


@pytest.fixture
def full(make_job: MakeJob) -> Callable[..., Source]:
    """All weights of the tiny model moved at random, as a full training leaves them."""

    def make(name: str, seed: int) -> Source:
        import torch

        job = make_job(f"{name}/training", use_peft=False, seed=seed)
        model, drawn = fp32(job.model_folder), torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=drawn)
        job.folder.mkdir(parents=True)
        folder = save_weights(model, job.folder, tokenizer_of=job.model_folder)
        write_card(folder, job, trained(job, folder))
        return source(name, folder)

    return make


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: one for path in sorted(folder.glob("*.safetensors")) for name, one in load_file(path).items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Bit for bit."""
    return {*one} == {*other} and all(one[name].dtype == other[name].dtype and one[name].equal(other[name]) for name in one)


def logits(base: Path, folder: Path | None) -> Any:
    """Behind each row's tokens, by transformers and peft alone."""
    import torch
    from peft import PeftModel

    whole = folder is not None and (folder / "config.json").is_file()
    model = fp32(folder if whole and folder else base)
    if folder is not None and not whole:
        model = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        return torch.cat([model.eval()(input_ids=torch.tensor([row])).logits[0] for row in ROWS])


def deltas(folder: Path) -> dict[str, Any]:
    """s B A of every layer, in fp64, from the files alone (Hu et al. 2021)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    state = {key: one.double() for key, one in tensors(folder).items()}
    return {key: scaling * state[key.replace("lora_A", "lora_B")] @ state[key] for key in state if "lora_A" in key}


def arm(*sources: Source, scale: float) -> Arm:
    return Arm("arm", "tuned", sources, scale)


def test_an_adapter_at_scale_0_answers_as_the_base_and_at_1_it_is_itself_bit_for_bit(
    adapter: Callable[..., Source], tiny_model: Path, tmp_path: Path
) -> None:
    one = adapter("a", 1)
    for scale in (0.0, 1.0):
        write_arm(arm(one, scale=scale), tiny_model, tmp_path / f"{scale}")
    assert same(tensors(tmp_path / "1.0"), tensors(one.folder))
    base, nothing, all_of_it = logits(tiny_model, None), logits(tiny_model, tmp_path / "0.0"), logits(tiny_model, one.folder)
    assert nothing.equal(base)
    assert logits(tiny_model, tmp_path / "1.0").equal(all_of_it)
    assert (all_of_it - base).abs().max() > 0.1


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}])
def test_what_a_layer_adds_is_linear_in_the_scale(
    kind: dict[str, Any], adapter: Callable[..., Source], tiny_model: Path, tmp_path: Path
) -> None:
    one = adapter("a", 1, **kind)
    write_arm(arm(one, scale=0.3), tiny_model, tmp_path / "out")
    whole, part = deltas(one.folder), deltas(tmp_path / "out")
    assert {*whole} == {*part}
    assert all((0.3 * whole[name] - part[name]).abs().max() < 1e-6 * whole[name].abs().max() for name in whole)


def test_magnitudes_of_dora_go_from_the_bases_norms_to_the_trained_ones(
    adapter: Callable[..., Source], tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    one = adapter("a", 1, use_dora=True)
    # As a training leaves them: a fresh adapter's are the base's own norms.
    state = load_file(one.folder / WEIGHTS)
    state = {key: 1.5 * tensor if "magnitude" in key else tensor for key, tensor in state.items()}
    assert any("magnitude" in key for key in state)
    save_file(state, one.folder / WEIGHTS, {"format": "pt"})
    for scale in (0.0, 1.0):
        write_arm(arm(one, scale=scale), tiny_model, tmp_path / f"{scale}")
    assert same(tensors(tmp_path / "1.0"), tensors(one.folder))
    base = logits(tiny_model, None)
    assert (logits(tiny_model, tmp_path / "0.0") - base).abs().max() < 1e-4
    assert (logits(tiny_model, one.folder) - base).abs().max() > 0.1


def test_a_full_training_goes_from_the_base_to_itself(full: Callable[..., Source], tiny_model: Path, tmp_path: Path) -> None:
    one = full("a", 1)
    for scale in (0.0, 0.3, 1.0):
        write_arm(arm(one, scale=scale), tiny_model, tmp_path / f"{scale}")
    base, end, between = tensors(tiny_model), tensors(one.folder), tensors(tmp_path / "0.3")
    assert same(tensors(tmp_path / "0.0"), base)
    assert same(tensors(tmp_path / "1.0"), end)
    for name, tensor in between.items():
        expected = base[name].double() + 0.3 * (end[name].double() - base[name].double())
        assert (tensor.double() - expected).abs().max() < 1e-6, name
    # It is asked like any other model: settings and tokeniser lie beside the weights.
    engine = HfEngine(ModelHandle(str(tiny_model), "float32", ignore))
    asked = engine.with_adapter(tmp_path / "0.3", "arm")
    (kl,) = engine.divergence(asked, ["Item 3 is red."])
    (most,) = engine.divergence(engine.with_adapter(one.folder, "end"), ["Item 3 is red."])
    assert 0 < kl < most


def test_a_model_in_parts_is_the_model_in_one(
    full: Callable[..., Source], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = full("a", 1)
    write_arm(arm(one, scale=0.7), tiny_model, tmp_path / "one")
    monkeypatch.setattr(repair, "SHARD_BYTES", 20_000)
    write_arm(arm(one, scale=0.7), tiny_model, tmp_path / "parts")
    assert len([*(tmp_path / "parts").glob("*.safetensors")]) > 2
    assert same(tensors(tmp_path / "one"), tensors(tmp_path / "parts"))
    assert logits(tiny_model, tmp_path / "one").equal(logits(tiny_model, tmp_path / "parts"))


def test_a_soup_of_two_equal_trainings_is_that_training(
    adapter: Callable[..., Source], full: Callable[..., Source], tiny_model: Path, tmp_path: Path
) -> None:
    twins = adapter("a", 1), adapter("b", 1)
    write_arm(arm(*twins, scale=1.0), tiny_model, tmp_path / "soup")
    # The same sum at twice the rank; products in fp32.
    assert (logits(tiny_model, tmp_path / "soup") - logits(tiny_model, twins[0].folder)).abs().max() < 1e-4
    models = full("c", 1), full("d", 1)
    write_arm(arm(*models, scale=1.0), tiny_model, tmp_path / "models")
    assert same(tensors(tmp_path / "models"), tensors(models[0].folder))


def test_a_soup_is_the_mean_of_what_each_adds_times_the_scale(
    adapter: Callable[..., Source], tiny_model: Path, tmp_path: Path
) -> None:
    one, other = adapter("a", 1), adapter("b", 2)
    write_arm(arm(one, other, scale=0.7), tiny_model, tmp_path / "soup")
    first, second, soup = deltas(one.folder), deltas(other.folder), deltas(tmp_path / "soup")
    for name in first:
        assert (soup[name] - 0.7 * (first[name] + second[name]) / 2).abs().max() < 1e-6 * first[name].abs().max(), name


def test_the_card_tells_recipe_scale_and_parents_and_takes_no_measurement_over(
    adapter: Callable[..., Source], tiny_model: Path, tmp_path: Path
) -> None:
    one, other = adapter("a", 1), adapter("b", 2)
    write_arm(arm(one, other, scale=0.5), tiny_model, tmp_path / "out")
    card = read_card(tmp_path / "out")
    assert card.how == "repair"
    assert card.recipe == one.card.recipe
    assert "0.5 of the way" in card.title
    assert [(parent.name, parent.digest, parent.weight) for parent in card.parents] == [
        ("a", one.card.digest, 0.25),
        ("b", other.card.digest, 0.25),
    ]
    assert (card.final_loss, card.dev_loss, card.scores) == (None, None, {})
    assert card.prompt_format == one.card.prompt_format


def test_nothing_is_between_weights_that_do_not_belong_together(
    adapter: Callable[..., Source], full: Callable[..., Source], tiny_model: Path, tiny_gemma: Path, tmp_path: Path
) -> None:
    one = adapter("a", 1)
    with pytest.raises(AdvisorError, match="of another base"):
        write_arm(arm(one, scale=0.5), tiny_gemma, tmp_path / "out")
    with pytest.raises(UsageError):
        write_arm(arm(one, full("b", 1), scale=0.5), tiny_model, tmp_path / "out")
    with pytest.raises(UsageError):
        write_arm(arm(one, scale=float("nan")), tiny_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused(full: Callable[..., Source], tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    one = full("a", 1)
    path = next(one.folder.glob("*.safetensors"))
    state = load_file(path)
    state["model.norm.weight"][3] = float("inf")
    save_file(state, path, {"format": "pt"})
    with pytest.raises(AdvisorError, match="not finite"):
        write_arm(arm(one, scale=0.5), tiny_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_whole_weights_of_earlier_steps_are_found_and_torn_ones_are_not(
    adapter: Callable[..., Source], tiny_model: Path, tmp_path: Path
) -> None:
    import shutil

    one = adapter("a", 1)
    checkpoints = one.folder.parent / "checkpoints"
    for name in ("best-10", "best-30", "checkpoint-20", "checkpoint-24"):
        shutil.copytree(one.folder, checkpoints / name)
    for name in NEEDED:
        (checkpoints / "checkpoint-24" / name).write_text("state")
    mark_complete(checkpoints / "checkpoint-24", Spent())
    keep_weights(checkpoints, 30)
    # best-30 is the end itself, and checkpoint-20 has no mark that it is whole. Nothing is left of what only going on would need.
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-10", "step-24"]
    assert {path.name for path in (checkpoints / "step-24").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    (checkpoints / "step-24" / "adapter_model.safetensors").unlink()
    found = early(one)
    assert [source.step for source in found] == [10]
    write_arm(Arm("step_10", "early", found), tiny_model, tmp_path / "out")
    assert read_card(tmp_path / "out").steps == 10
    assert same(tensors(tmp_path / "out"), tensors(one.folder))


@pytest.mark.parametrize(("limit", "steps"), [(1, []), (3, [4, 8])])
def test_a_training_that_is_to_keep_more_than_its_end_leaves_the_weights_of_earlier_steps(
    limit: int, steps: list[int], make_job: MakeJob, fork_workers: Callable[..., None], tiny_model: Path, tmp_path: Path
) -> None:
    end = train(make_job("kept", rows=32, save_steps=4, save_total_limit=limit), ignore)
    assert end.steps == 12
    found = early(source("tuned", end.folder))
    assert [one.step for one in found] == steps
    for one in found:
        write_arm(Arm("early", "early", (one,)), tiny_model, tmp_path / f"{one.step}")
        assert not same(tensors(tmp_path / f"{one.step}"), tensors(end.folder))


def test_only_trainings_that_differ_in_their_seed_alone_are_averaged(adapter: Callable[..., Source]) -> None:
    one, other, twin, milder = adapter("a", 1), adapter("b", 2), adapter("c", 1), adapter("d", 2, learning_rate=1e-4)
    assert differ_in_seed(one.card, other.card)
    assert not differ_in_seed(one.card, twin.card)
    assert not differ_in_seed(one.card, milder.card)
    assert [one.scale for one in line("tuned", [one])] == [1.0, 0.85, 0.7, 0.5, 0.3]
    assert line("tuned", [one])[0].is_source


def test_each_remedy_is_milder_in_one_setting(make_job: MakeJob) -> None:
    recipe = make_job(lora_r=16, lora_alpha=32, learning_rate=3e-4, num_train_epochs=3.0, max_steps=40).recipe
    found = {one.name: replace(recipe, **one.overrides) for one in remedies(recipe)}
    assert found["replay"].replay_share > recipe.replay_share
    assert found["learning_rate"].learning_rate == pytest.approx(1e-4)
    assert (found["rank"].lora_r, found["rank"].lora_alpha) == (4, 8)
    assert found["early"].total_steps(800) == 20
    assert found["seed"].seed == recipe.seed + 1
    assert [*found] == ["replay", "learning_rate", "rank", "early", "seed"]
    assert "rank" not in {one.name for one in remedies(replace(recipe, use_peft=False))}
    assert "replay" not in {one.name for one in remedies(replace(recipe, replay_share=0.5))}
    assert "replay" not in {one.name for one in remedies(replace(recipe, method="dpo"))}
