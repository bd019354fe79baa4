"""What to train otherwise where trained weights forget too much, and no scale of them passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.recipe import Recipe

MORE_REPLAY, MOST_REPLAY = 0.2, 0.4
SLOWER = 3.0
LOWEST_RANK = 4


@dataclass(frozen=True)
class Remedy:
    """Settings of the recipe in the place of its own, and why they forget less. `name` is a folder's."""

    name: str
    overrides: Mapping[str, Any]
    why: str


def remedies(recipe: Recipe) -> tuple[Remedy, ...]:
    """One setting at a time, so that what helped is known; those that this recipe has no room for are left out.

    Last, the same recipe with another seed, to be averaged with the first: it is no milder, its mean may be.
    """
    found = []
    share = min(MOST_REPLAY, max(MORE_REPLAY, 4 * recipe.replay_share))
    if share > recipe.replay_share and recipe.reads("replay_share"):
        why = "more of the base's own answers are trained on beside the task's (rehearsal, Scialom et al. 2022)"
        found.append(Remedy("replay", {"replay_share": share}, why))
    rate = float(f"{recipe.learning_rate / SLOWER:.2g}")
    found.append(Remedy("learning_rate", {"learning_rate": rate}, "smaller steps leave the weights nearer to the base's"))
    if recipe.use_peft and recipe.lora_r > LOWEST_RANK:
        rank = max(LOWEST_RANK, recipe.lora_r // 4)
        # The scaling of what the adapter adds stays.
        alpha = max(1, round(recipe.lora_alpha * rank / recipe.lora_r))
        why = "an adapter of lower rank learns less and forgets less (Biderman et al. 2024)"
        found.append(Remedy("rank", {"lora_r": rank, "lora_alpha": alpha}, why))
    found.append(Remedy("early", _half(recipe), "an early checkpoint: half the passes, the schedule drawn together to them"))
    found.append(Remedy("seed", {"seed": recipe.seed + 1}, "another seed, to be averaged with this one (a model soup)"))
    return tuple(found)


def _half(recipe: Recipe) -> dict[str, Any]:
    halved: dict[str, Any] = {"num_train_epochs": recipe.num_train_epochs / 2}
    return halved | {"max_steps": max(1, recipe.max_steps // 2)} if recipe.max_steps else halved
