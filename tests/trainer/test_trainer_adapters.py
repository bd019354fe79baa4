"""Adapters after training: cards, several on one base, combined, merged: by identities that hold exactly, on a model of two layers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.engines.engine import Message, Request
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.models import weights_fingerprint
from evals.errors import AdvisorError, UsageError
from evals.events import ignore
from tests.random_adapter import fp32, random_adapter, trained
from trainer.adapters import HOWS, Adapters, base_of, list_adapters
from trainer.card import add_score, escaped, read_card, readme, write_card
from trainer.job import TrainingJob
from trainer.merge import merge, stored_dtype

MakeJob = Callable[..., TrainingJob]
MakeAdapter = Callable[..., Path]
# Rows of unlike lengths, so that a padded row that saw its padding would show.
ROWS = [[5, 9, 20, 33], [40, 41], [7, 8, 9, 10, 11, 12, 13]]


@pytest.fixture
def make_adapter(make_job: MakeJob) -> MakeAdapter:
    """A folder with random LoRA weights and its card, as a training leaves it."""

    def make(name: str, seed: int, **recipe: Any) -> Path:
        return random_adapter(make_job(f"{name}/training", **recipe), seed)

    return make


@pytest.fixture
def two(make_adapter: MakeAdapter, tiny_model: Path) -> Adapters:
    adapters = Adapters(tiny_model)
    adapters.add("a", make_adapter("a", 1))
    adapters.add("b", make_adapter("b", 2))
    return adapters


def plain_logits(folder: Path, rows: list[list[int]] = ROWS) -> Any:
    """Behind each row's last token, one row at a time, by transformers alone."""
    import torch

    model = fp32(folder)
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])


def one_by_one(adapters: Adapters, *names: str, scale: float = 1.0) -> Any:
    import torch

    with adapters.active(*names, scale=scale):
        return torch.cat([adapters.logits([row]) for row in ROWS])


def state(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def deltas(folder: Path) -> dict[str, Any]:
    """s B A of every layer, from the files alone (Hu et al. 2021)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    weights = state(folder)
    return {
        key.replace(".lora_A.weight", ""): scaling * weights[key.replace("lora_A", "lora_B")] @ weights[key]
        for key in weights
        if "lora_A" in key
    }


def test_the_planted_adapters_differ_from_the_base_and_from_each_other(two: Adapters, tiny_model: Path) -> None:
    base, a, b = plain_logits(tiny_model), one_by_one(two, "a"), one_by_one(two, "b")
    assert min((base - a).abs().max(), (base - b).abs().max(), (a - b).abs().max()) > 0.1


def test_rows_of_one_batch_go_each_through_their_own_adapter(two: Adapters, tiny_model: Path) -> None:
    import torch

    mixed = two.logits(ROWS, ["b", None, "a"])
    assert torch.allclose(mixed[0], one_by_one(two, "b")[0], atol=1e-5)
    assert torch.allclose(mixed[1], plain_logits(tiny_model)[1], atol=1e-5)
    assert torch.allclose(mixed[2], one_by_one(two, "a")[2], atol=1e-5)
    assert torch.allclose(two.logits(ROWS, [None] * 3), plain_logits(tiny_model), atol=1e-5)


def test_the_engine_interleaves_requests_for_different_adapters(make_adapter: MakeAdapter, tiny_model: Path) -> None:
    engine = HfEngine(ModelHandle(str(tiny_model), "float32", ignore))
    engines = [engine, engine.with_adapter(make_adapter("a", 1), "a"), engine.with_adapter(make_adapter("b", 2), "b")]
    requests = [Request(f"{at}", (Message("user", f"say {at}" * (1 + at)),), 4 + 2 * at) for at in range(4)]
    alone = [{one.id: one.text for one in each.generate(requests)} for each in engines]
    assert len({json.dumps(one) for one in alone}) == 3
    # Step by step in turn: each generator goes on after the others have switched the weights.
    streams, together = [each.generate(requests) for each in engines], [{}, {}, {}]  # type: ignore[var-annotated]
    while streams_left := [at for at, one in enumerate(together) if len(one) < len(requests)]:
        for at in streams_left:
            response = next(streams[at])
            together[at][response.id] = response.text
    assert together == alone


def test_scale_0_is_the_base_bit_for_bit_and_1_the_adapter(two: Adapters, tiny_model: Path) -> None:
    import torch

    base = Adapters(tiny_model).logits(ROWS)
    with two.active("a", scale=0.0):
        assert torch.equal(two.logits(ROWS), base)
    with two.active():
        assert torch.equal(two.logits(ROWS), base)
    with two.active("a"):
        whole = two.logits(ROWS)
    with two.active("a", scale=1.0):
        assert torch.equal(two.logits(ROWS), whole)
    with two.active("a", scale=0.5):
        assert (two.logits(ROWS) - whole).abs().max() > 0.01
    # Outside nothing is left switched on, or scaled.
    assert torch.equal(two.logits(ROWS), base)
    assert torch.allclose(one_by_one(two, "a"), whole, atol=1e-5)


def test_linear_with_weights_1_and_0_is_the_first_alone(two: Adapters) -> None:
    import torch

    two.combine("c", {"a": 1.0, "b": 0.0}, "linear")
    assert torch.allclose(one_by_one(two, "c"), one_by_one(two, "a"), atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_cat_is_the_weighted_sum_of_the_deltas(
    make_adapter: MakeAdapter, tiny_model: Path, tmp_path: Path, rslora: bool
) -> None:
    """Against s B A from the files. Under rsLoRA peft 0.21 itself would make the sum sqrt(rank) times too large."""
    import torch

    adapters = Adapters(tiny_model)
    folders = {"a": make_adapter("a", 1, use_rslora=rslora), "b": make_adapter("b", 2, lora_r=6, use_rslora=rslora)}
    for name, folder in folders.items():
        adapters.add(name, folder)
    adapters.combine("c", {"a": 0.7, "b": -0.4}, "cat")
    adapters.save("c", tmp_path / "c")
    first, second, both = (deltas(folder) for folder in (folders["a"], folders["b"], tmp_path / "c"))
    assert both.keys() == first.keys()
    assert len(both) == 14
    for layer, delta in both.items():
        assert torch.allclose(delta, 0.7 * first[layer] - 0.4 * second[layer], atol=1e-6)
    # Loaded again it answers as it did here.
    here = one_by_one(adapters, "c")
    fresh = Adapters(tiny_model)
    fresh.add("c", tmp_path / "c")
    assert torch.allclose(one_by_one(fresh, "c"), here, atol=1e-5)
    assert torch.equal(here, one_by_one(adapters, "c"))


def test_stacked_adapters_are_the_sum_as_cat_makes_it(two: Adapters) -> None:
    import torch

    two.combine("c", {"a": 1.0, "b": 1.0}, "cat")
    assert torch.allclose(one_by_one(two, "a", "b"), one_by_one(two, "c"), atol=1e-4)
    assert (one_by_one(two, "a", "b") - one_by_one(two, "a")).abs().max() > 0.1


def test_ties_is_the_vote_of_the_largest_values(two: Adapters, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """By Yadav et al. 2023, 2306.01708: keep the largest share, elect the sign of the sum, mean of those that agree."""
    import torch

    two.combine("c", {"a": 0.5, "b": 0.5}, "ties", density=0.25)
    two.save("c", tmp_path / "c")
    made, parts = state(tmp_path / "c"), [state(tmp_path / one / "training" / "adapter") for one in ("a", "b")]
    key = next(one for one in made if "q_proj.lora_A" in one)
    kept = []
    for part in parts:
        values = part[key].flatten()
        largest = values.abs().argsort(descending=True)[: len(values) // 4]
        mask = torch.zeros_like(values)
        mask[largest] = 1
        # Scaling is alpha / r = 8, and the weight goes half to A and half to B.
        kept.append((values * mask * (0.5 * 8) ** 0.5).view_as(part[key]))
    sign = torch.where(sum(kept) >= 0, 1.0, -1.0)
    agree = [(one.sign() == sign).float() for one in kept]
    expected = sum(one * mask for one, mask in zip(kept, agree, strict=True)) / sum(agree).clamp(min=1)
    assert torch.allclose(made[key], expected, atol=1e-6)


@pytest.mark.parametrize("how", HOWS)
def test_every_way_to_combine_is_finite_repeatable_and_leaves_the_parts_alone(two: Adapters, how: str) -> None:
    import torch

    before = one_by_one(two, "a"), one_by_one(two, "b")
    torch.manual_seed(17)
    follows = torch.rand(1)
    torch.manual_seed(17)
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        two.combine(name, {"a": 0.6, "b": 0.4}, how, seed=seed)
    # The caller's own random numbers go on as if nothing had been drawn.
    assert torch.equal(torch.rand(1), follows)
    first, again, other = (one_by_one(two, name) for name in ("first", "again", "other"))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (not how.startswith("dare"))
    assert torch.equal(before[0], one_by_one(two, "a"))
    assert torch.equal(before[1], one_by_one(two, "b"))


def test_the_card_of_a_combination_names_parents_and_weights(two: Adapters, tmp_path: Path) -> None:
    two.combine("c", {"a": 0.7, "b": 0.3}, "dare_ties", density=0.4, seed=9)
    two.save("c", tmp_path / "c")
    card = read_card(tmp_path / "c")
    assert [(one.name, one.weight) for one in card.parents] == [("a", 0.7), ("b", 0.3)]
    assert [one.digest for one in card.parents] == [two.cards["a"].digest, two.cards["b"].digest]
    assert (card.how, card.recipe, card.data) == ("dare_ties", {"density": 0.4, "seed": 9}, {})
    assert card.base == two.cards["a"].base
    assert (tmp_path / "c" / "README.md").is_file()
    with pytest.raises(AdvisorError, match="something here already"):
        two.save("c", tmp_path / "c")


@pytest.mark.parametrize(
    ("recipe", "how", "words"),
    [
        ({"lora_r": 6}, "ties", "one rank"),
        ({"use_dora": True}, "cat", "plain LoRA"),
        ({}, "svd", "is none of"),
        ({}, "dare_tie", "did you mean 'dare_ties'"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    make_adapter: MakeAdapter, tiny_model: Path, recipe: dict[str, Any], how: str, words: str
) -> None:
    adapters = Adapters(tiny_model)
    adapters.add("a", make_adapter("a", 1))
    adapters.add("b", make_adapter("b", 2, **recipe))
    with pytest.raises(UsageError, match=words):
        adapters.combine("c", {"a": 1.0, "b": 1.0}, how)
    assert adapters.names == ("a", "b")


def test_dora_is_asked_apart_since_peft_cannot_mix_it(make_adapter: MakeAdapter, tiny_model: Path) -> None:
    adapters = Adapters(tiny_model)
    adapters.add("d", make_adapter("d", 1, use_dora=True))
    with pytest.raises(AdvisorError, match="DoRA cannot be mixed"):
        adapters.logits(ROWS, ["d", None, None])
    with adapters.active("d"):
        assert (adapters.logits(ROWS) - plain_logits(tiny_model)).abs().max() > 0.1


def test_an_unknown_name_is_told_with_the_nearest(two: Adapters) -> None:
    with pytest.raises(AdvisorError, match="no adapter is loaded as 'c'"):
        two.logits(ROWS, ["a", "c", None])


@pytest.fixture
def other_base(tiny_model: Path, tmp_path: Path) -> Path:
    """Of the same shape, with other weights: an adapter would load on it without a word."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other-base"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + torch.tensor(0.5)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_an_adapter_of_another_base_is_refused(make_adapter: MakeAdapter, other_base: Path, tmp_path: Path) -> None:
    folder = make_adapter("a", 1)
    with pytest.raises(AdvisorError, match="of another base: of tiny"):
        Adapters(other_base).add("a", folder)
    with pytest.raises(AdvisorError, match="of another base"):
        HfEngine(ModelHandle(str(other_base), "float32", ignore)).with_adapter(folder, "a")
    with pytest.raises(AdvisorError, match="of another base"):
        merge(folder, other_base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_changed_weights_are_refused(make_adapter: MakeAdapter, tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter("a", 1)
    path = folder / "adapter_model.safetensors"
    body = bytearray(path.read_bytes())
    body[-3] ^= 1  # one bit of one weight
    path.write_bytes(bytes(body))
    for load in (
        lambda: Adapters(tiny_model).add("a", folder),
        lambda: HfEngine(ModelHandle(str(tiny_model), "float32", ignore)).with_adapter(folder, "a"),
        lambda: merge(folder, tiny_model, tmp_path / "merged"),
    ):
        with pytest.raises(AdvisorError, match=r"adapter_model\.safetensors is not the file that its card names"):
            load()


def test_changed_settings_and_added_weights_are_refused(make_adapter: MakeAdapter) -> None:
    folder = make_adapter("a", 1)
    path = folder / "adapter_config.json"
    text = path.read_text()
    path.write_text(text.replace('"lora_alpha": 32', '"lora_alpha": 64'))
    with pytest.raises(AdvisorError, match=r"adapter_config\.json is not the file"):
        read_card(folder)
    path.write_text(text)
    (folder / "more.safetensors").write_bytes(b"0")
    with pytest.raises(AdvisorError, match=r"does not name more\.safetensors"):
        read_card(folder)


def test_a_card_cannot_make_us_read_elsewhere(make_adapter: MakeAdapter) -> None:
    folder = make_adapter("a", 1)
    body = json.loads((folder / "card.json").read_text())
    body["files"]["../training.json"] = body["files"]["adapter_config.json"]
    (folder / "card.json").write_text(json.dumps(body))
    with pytest.raises(AdvisorError, match=r"the card names \.\./training\.json, which is not here"):
        read_card(folder)


def test_the_card_tells_base_rows_recipe_and_result(make_adapter: MakeAdapter, make_job: MakeJob, tiny_model: Path) -> None:
    card = read_card(make_adapter("a", 1))
    job = make_job("same")
    assert (card.base.name, card.base.fingerprint) == ("tiny", weights_fingerprint(tiny_model))
    assert (card.kind, card.method, card.recipe["lora_r"]) == ("adapter", "sft", 4)
    assert {name: one.rows for name, one in card.data.items()} == {"train": 32, "dev": 8, "replay": 0}
    assert (card.seconds, card.final_loss, card.dev_loss) == (1.5, 0.5, 0.25)
    assert set(card.packages) >= {"python", "torch", "peft", "trl", "transformers"}
    assert card.prompt_format == job.prompt_format


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scores", {"dev": {"metric": "exact", "mean": "high", "n": 3}}),
        ("parents", [{"name": "a"}]),
        ("seconds", None),
        ("recipe", "[red]none[/]"),
        ("base", None),
        ("files", {}),
        ("files", {"adapter_model.safetensors": "x"}),
        ("schema_version", 9),
    ],
)
def test_a_card_with_values_of_another_kind_is_named_as_damaged(make_adapter: MakeAdapter, key: str, value: Any) -> None:
    folder = make_adapter("a", 1)
    body = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**body, key: value}))
    (found,) = list_adapters(folder.parents[1])
    assert found.card is None
    assert found.problem


@pytest.mark.parametrize("kind", ["train", "dev"])
def test_the_hash_of_the_rows_changes_with_a_row(make_adapter: MakeAdapter, make_job: MakeJob, kind: str) -> None:
    folder = make_adapter("a", 1)
    before = read_card(folder)
    job = make_job("same")
    assert write_card(folder, job, trained(job, folder)).data == before.data
    rows = getattr(job, kind)
    changed = replace(job, **{kind: (*rows[:-1], replace(rows[-1], target="z"))})
    after = write_card(folder, changed, trained(changed, folder))
    assert {name for name in before.data if before.data[name] != after.data[name]} == {kind}


def test_scores_join_the_card_and_its_readme(make_adapter: MakeAdapter) -> None:
    folder = make_adapter("a", 1)
    before = read_card(folder)
    add_score(folder, "dev", "exact_match", 0.75, 8)
    add_score(folder, "test", "exact_match", 0.5, 80)
    card = read_card(folder)
    assert {name: (one.mean, one.n) for name, one in card.scores.items()} == {"dev": (0.75, 8), "test": (0.5, 80)}
    assert replace(card, scores={}) == before
    assert "0.750 (n = 8)" in (folder / "README.md").read_text()


def test_nothing_of_the_data_is_markup_in_the_readme(make_adapter: MakeAdapter) -> None:
    card = read_card(make_adapter("a", 1))
    bad = "<script>x</script> ![i](http://evil) | **b** `c` \x1b[31m\n# heading\n</td> www.evil.example"
    text = readme(
        replace(
            card,
            title=bad,
            base=replace(card.base, name=bad),
            prompt_format=replace(card.prompt_format, instruction=f"{bad}\n\n```\n{bad}"),
        )
    )
    # An indented line is a code block; everywhere else each mark is escaped.
    shown = [line for line in text.splitlines() if not line.startswith("    ")]
    assert "\x1b" not in text
    assert sum(line.startswith("#") for line in shown) == 1
    for line in shown:
        assert "<script" not in line.replace("\\<", "")
        assert "![" not in line
        assert "**b" not in line
        assert "http:/" not in line
    assert escaped("a_b|c") == "a\\_b\\|c"
    # A block begins behind an empty line and none of its lines stands out.
    assert all(line.startswith("    ") or "evil" not in line.replace("\\", "") or line[0] in "#|" for line in text.splitlines())


def test_merged_logits_are_the_adapters_and_so_are_the_tokens(
    make_adapter: MakeAdapter, tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    folder = make_adapter("a", 1)
    card = merge(folder, tiny_model, tmp_path / "merged", name="a-run")
    adapters = Adapters(tiny_model)
    adapters.add("a", folder)
    assert torch.allclose(plain_logits(tmp_path / "merged"), one_by_one(adapters, "a"), atol=1e-4)
    engine = HfEngine(ModelHandle(str(tiny_model), "float32", ignore)).with_adapter(folder, "a")
    whole = HfEngine(ModelHandle(str(tmp_path / "merged"), "float32", ignore))
    requests = [Request(f"{at}", (Message("user", f"say {at}"),), 12) for at in range(6)]
    tokens = [{one.id: (one.text, one.output_tokens) for one in each.generate(requests)} for each in (engine, whole)]
    assert tokens[0] == tokens[1]
    assert (card.kind, card.how, [one.name for one in card.parents]) == ("model", "merge", ["a-run"])
    assert card == read_card(tmp_path / "merged")
    assert stored_dtype(tmp_path / "merged") == "float32"
    # Nothing but safetensors, settings and text; no path of this machine in them.
    for path in (tmp_path / "merged").iterdir():
        assert path.suffix in {".safetensors", ".json", ".jinja", ".md", ".txt"}
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(tiny_model).encode() not in path.read_bytes()


@pytest.mark.parametrize("kind", ["use_dora", "use_rslora"])
def test_dora_and_rslora_merge_too(make_adapter: MakeAdapter, tiny_model: Path, tmp_path: Path, kind: str) -> None:
    import torch

    folder = make_adapter("a", 1, **{kind: True})
    merge(folder, tiny_model, tmp_path / "merged")
    adapters = Adapters(tiny_model)
    adapters.add("a", folder)
    assert torch.allclose(plain_logits(tmp_path / "merged"), one_by_one(adapters, "a"), atol=1e-4)


def test_a_base_in_bf16_is_merged_in_fp32_and_rounded_once(
    make_adapter: MakeAdapter, make_job: MakeJob, tiny_model: Path, tmp_path: Path
) -> None:
    """Against the sum written out here: bf16(fp32(base) + s B A). A sum made in bf16 would differ."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path / "half"
    shutil.copytree(tiny_model, base)
    save_file(
        {key: value.bfloat16() for key, value in load_file(base / "model.safetensors").items()},
        base / "model.safetensors",
        {"format": "pt"},
    )
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config.replace('"float32"', '"bfloat16"'))
    assert '"bfloat16"' in (base / "config.json").read_text()
    folder = make_adapter("a", 1)
    job = replace(make_job("a/training"), model_folder=base)
    write_card(folder, job, trained(job, folder))
    merge(folder, base, tmp_path / "merged")
    merge(folder, base, tmp_path / "merged32", saved_in="float32")
    assert [stored_dtype(tmp_path / one) for one in ("merged", "merged32")] == ["bfloat16", "float32"]
    start, half, full = (load_file(one / "model.safetensors") for one in (base, tmp_path / "merged", tmp_path / "merged32"))
    for layer, delta in deltas(folder).items():
        key = layer.removeprefix("base_model.model.") + ".weight"
        exact = start[key].float() + delta
        assert torch.allclose(full[key], exact, atol=1e-6)
        # Equal but for sums that lie on the edge between two bf16 values.
        assert (half[key] == exact.bfloat16()).float().mean() > 0.999


def test_weights_that_are_not_finite_are_not_merged(
    make_adapter: MakeAdapter, make_job: MakeJob, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    folder = make_adapter("a", 1)
    weights = state(folder)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    job = make_job("same")
    write_card(folder, job, trained(job, folder))
    with pytest.raises(AdvisorError, match="cannot be merged"):
        merge(folder, tiny_model, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_is_killed_leaves_nothing_half(make_adapter: MakeAdapter, tiny_model: Path, tmp_path: Path) -> None:
    """Killed with the weights written and the card not: the folder is not there, and the next merge succeeds."""
    folder, out = make_adapter("a", 1), tmp_path / "out" / "merged"
    code = (
        "import sys, time; from pathlib import Path; import trainer.merge as m\n"
        "m.put_card = lambda *a: (print('written', flush=True), time.sleep(60))\n"
        "m.merge(*map(Path, sys.argv[1:]))"
    )
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(tiny_model), str(out)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert any(line.startswith("written") for line in child.stdout)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not out.exists()
    assert [one.name for one in out.parent.iterdir()] == [".merged.new"]
    merge(folder, tiny_model, out)
    assert [one.name for one in out.parent.iterdir()] == ["merged"]
    read_card(out)


def test_the_list_names_all_and_what_is_damaged(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    first = make_adapter("run-1", 1)
    torn, bare = make_adapter("run-2", 2), make_adapter("run-3", 3)
    add_score(first, "dev", "exact_match", 0.75, 8)
    body = (torn / "adapter_model.safetensors").read_bytes()
    (torn / "adapter_model.safetensors").write_bytes(body[:-8])
    (bare / "card.json").unlink()
    found = {one.name: one for one in list_adapters(tmp_path)}
    assert list(found) == ["run-1", "run-2", "run-3"]
    assert found["run-1"].card is not None
    assert found["run-1"].card.scores["dev"].mean == 0.75
    assert found["run-1"].problem == ""
    assert "is not the file that its card names" in found["run-2"].problem
    assert "no card" in found["run-3"].problem


def test_the_base_is_found_where_it_lay_and_refused_when_it_is_another(
    make_adapter: MakeAdapter, tiny_model: Path, other_base: Path
) -> None:
    folder = make_adapter("a", 1)
    card = read_card(folder)
    assert base_of(folder, card) == tiny_model
    path = folder / "adapter_config.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "base_model_name_or_path": str(other_base)}))
    with pytest.raises(AdvisorError, match=r"its base, tiny .* is not on this machine"):
        base_of(folder, card)
