"""Less forgetting without training: the change that training made, kept where the task's texts need it and taken back where general ones
would notice it.

RegMean (Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models", 2212.09849) merges models layer by layer so
that the merged layer's outputs are those of each model on its own texts, in the least squares. Between a tuned model on the task's texts
and its base on general texts this is closed: with T and G the second moments of the layer's inputs there, and w the weight of the
general texts, the change D becomes D T (T + w G)^-1. Of a LoRA layer, whose change is B A, only A changes: its rank stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.candidate import PromptFormat
from evals.engines.hf import HfEngine
from evals.engines.machine import free_memory_mib
from evals.errors import AdvisorError, UsageError
from evals.general.divergence import general_texts
from evals.records import content_hash
from evals.task.example import Example
from trainer.adapters import CONFIG, WEIGHTS
from trainer.card import Card, put_card
from trainer.data import encode, encode_replay
from trainer.new_folder import new_folder
from trainer.repair import Arm, Source, card_of
from trainer.replay import Replay
from trainer.saving import copy_tokenizer

# How much a general token weighs against one of the task.
WEIGHTS_OF_GENERAL = (0.3, 1.0, 3.0, 10.0)
# Of the task's rows so many tokens: several for each input of a layer, read in seconds.
TASK_TOKENS = 8000
MAX_TOKENS = 512
# Of the mean of a matrix's diagonal: what keeps directions that no text has from being divided by nothing.
RIDGE = 1e-4
# Of the free memory, the share that moments may take; what does not fit is read in several passes, and beyond these it is left.
MEMORY_SHARE = 0.25
MAX_PASSES = 8
A, PREFIX = ".lora_A.weight", "base_model.model."


def regmean(kind: str, trained: Source) -> tuple[Arm, ...]:
    """One arm a weight of the general texts. None of a whole model, of DoRA (its magnitudes are not linear in A) and of raw text, which
    has no answers to keep."""
    recipe = trained.card.recipe
    if trained.whole or recipe.get("use_dora") or recipe.get("method") == "pretraining":
        return ()
    return tuple(Arm(f"{kind}_regmean_{one:g}", kind, (trained,), general=one) for one in WEIGHTS_OF_GENERAL)


def texts_of_task(tokenizer: Any, fmt: PromptFormat, rows: Sequence[Example]) -> tuple[list[int], ...]:
    """Training rows as they were trained on, prompt and answer, about TASK_TOKENS tokens of them: in no order that rows could come in."""
    found: list[list[int]] = []
    for row in sorted(rows, key=lambda one: content_hash(one.id)):
        if encoded := encode(tokenizer, fmt, row, MAX_TOKENS, truncation_mode="keep_end"):
            found.append(encoded["input_ids"])
        if sum(map(len, found)) >= TASK_TOKENS:
            break
    return tuple(found)


def texts_in_general(tokenizer: Any, replies: Sequence[Replay]) -> tuple[list[int], ...]:
    """Plain paragraphs of ours, and chats: questions with the replies that the base gives, or the user's own replay rows."""
    plain = tokenizer(list(general_texts()), verbose=False)["input_ids"]
    chats = [one["input_ids"] for one in encode_replay(tokenizer, replies, MAX_TOKENS)]
    return (*(one for one in plain if len(one) > 1), *chats)


def write_regmean(
    arms: Sequence[Arm],
    base: HfEngine,
    tuned: HfEngine,
    texts: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    folders: Sequence[Path],
    told: Callable[[int], None] = lambda _: None,
) -> tuple[Card, ...]:
    """Each arm's adapter in its folder, with a card. All are of one source, which `tuned` answers with; `texts` are token ids of the
    task's and of general texts.

    Raises UsageError where there is nothing to solve for, or too little memory.
    """
    from safetensors.torch import load_file, save_file

    home = arms[0].sources[0].folder
    state = load_file(home / WEIGHTS)
    keys = {key.removeprefix(PREFIX).removesuffix(A): key for key in state if key.endswith(A)}
    if not keys or not all(texts):
        raise UsageError("RegMean wants linear LoRA layers, texts of the task and general ones", where=str(home))
    known = base.handle.vocabulary
    general = [ids for ids in texts[1] if max(ids) < known]
    new = [dict(state) for _ in arms]
    for names in _passes({name: int(state[key].shape[1]) for name, key in keys.items()}, base, home):
        of_task = tuned.moments(texts[0], names, told)
        of_general = base.moments(general, names, told)
        for name in names:
            key = keys[name]
            for at, arm in enumerate(arms):
                new[at][key] = solved(state[key], of_task[name], of_general[name], arm.general)
    cards = []
    for arm, tensors, out in zip(arms, new, folders, strict=True):
        with new_folder(out) as folder:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
            shutil.copyfile(home / CONFIG, folder / CONFIG)
            copy_tokenizer(home, folder)
            cards.append(put_card(folder, _card(arm)))
    return tuple(cards)


def _card(arm: Arm) -> Card:
    card = card_of(arm)
    return replace(card, title=f"{card.title}, RegMean with the base on general text at a weight of {arm.general:g}")


def solved(a: Any, task: Any, general: Any, weight: float) -> Any:
    """A T (T + w G)^-1 of one layer, in fp64: `a` is (rank, in), the moments (in, in). Raises AdvisorError where it is not finite."""
    import torch

    with torch.no_grad():
        t, g = (one.clone().double().cpu() for one in (task, general))
        ridge = RIDGE * (t.diagonal().mean() + weight * g.diagonal().mean())
        both = t + weight * g + ridge * torch.eye(len(t), dtype=t.dtype)
        found = torch.linalg.solve(both, t @ a.double().T).T.to(a.dtype)
    if not torch.isfinite(found).all():
        raise AdvisorError("a weight is not finite", do="look at the training: such weights answer nothing.")
    return found


def _passes(widths: Mapping[str, int], base: HfEngine, home: Path) -> Iterator[list[str]]:
    """The layers in turn, as many at once as have room for both moments."""
    room = MEMORY_SHARE * free_memory_mib(base.handle.device) * 2**20
    need = {name: 2 * 4 * width**2 for name, width in widths.items()}
    if max(need.values()) > room or sum(need.values()) > MAX_PASSES * room:
        raise UsageError(
            f"RegMean of layers with {max(widths.values()):,} inputs wants more memory than there is",
            where=str(home),
            do="free memory; other arms are tried.",
        )
    names: list[str] = []
    for name in widths:
        if names and sum(need[one] for one in (*names, name)) > room:
            yield names
            names = []
        names.append(name)
    yield names
