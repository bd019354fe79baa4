"""A training configuration under TRL's own key names, with defaults by the size of the data and of the model."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from evals.errors import Problem, ProblemsError, did_you_mean

Method = Literal["sft", "pretraining", "raft", "rejection_sampling", "dpo"]
Instruction = Literal["full", "short"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Truncation = Literal["drop", "keep_start", "keep_end"]
Best = Literal["loss", "score"]
Preference = Literal["sigmoid", "hinge", "ipo", "robust"]
TITLES: dict[str, str] = {
    "sft": "SFT",
    "pretraining": "continued pretraining",
    "raft": "SFT with retrieved passages",
    "rejection_sampling": "rejection-sampling SFT",
    "dpo": "DPO",
}
# What people write for supervised fine-tuning of a kind of adapter, and the keys that it stands for.
SHORTHANDS: dict[str, dict[str, Any]] = {
    "lora": {"use_peft": True},
    "qlora": {"use_peft": True, "load_in_4bit": True},
    "dora": {"use_peft": True, "use_dora": True},
    "rslora": {"use_peft": True, "use_rslora": True},
    "full": {"use_peft": False},
}
# Keys that only some methods read: elsewhere they would be ignored in silence.
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "beta": ("dpo",),
    "loss_type": ("dpo",),
    "num_generations": ("rejection_sampling", "dpo"),
    "temperature": ("rejection_sampling", "dpo"),
    "num_distractors": ("raft",),
    "gold_share": ("raft",),
}
# Keys that a method has no use for, and why.
NOT_FOR: dict[str, dict[str, str]] = {
    "assistant_only_loss": {
        "pretraining": "the loss is on every token of the documents",
        "dpo": "the two answers of a pair are compared, whatever was said before them",
    },
    "truncation_mode": {"pretraining": "documents are cut into blocks, of which every token is learnt"},
    "instruction": {"raft": "rows are rendered by the pipeline with retrieval, which asks with the whole instruction"},
    "replay_share": {"dpo": "DPO learns from pairs alone, and its reference holds it back"},
}
# An adapter's own keys.
ADAPTER_KEYS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora", "use_rslora", "load_in_4bit")
# Turned off (false, 0) these say no more than what is the case where they are not read.
OFF_IS_NOTHING = ("use_dora", "use_rslora", "load_in_4bit", "replay_share", "warmup_steps")


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on beside the data and the base weights. Keys are TRL's where TRL has them.

    `method` says what is learnt from: `sft` the answers of the rows; `pretraining` the text of the documents; `raft` the answers,
    asked with retrieved passages; `rejection_sampling` the model's own right answers; `dpo` pairs of a better and a worse answer.
    `instruction` says which instruction the tuned model is trained and later asked with: the whole of it, or its first
    paragraph (training makes most of a long codebook needless, and a short prompt is cheaper a thousand times a day).

    `use_peft: false` trains all weights. `use_dora` and `use_rslora` are kinds of LoRA; `load_in_4bit` holds the frozen base in NF4
    (QLoRA). `assistant_only_loss` has the loss on every turn of the assistant; without it, on the last alone. Rows longer than
    `max_length` are dropped or cut at one end, as `truncation_mode` says (never into the answer's prompt alone).

    `replay_share` of all rows are general questions with the base's own replies (or rows of `data.replay`), against forgetting.
    `warmup_steps` under 1 is a share of all steps, as in transformers. `save_total_limit` whole checkpoints
    are kept while it trains, and where it is above 1 the weights of the earlier ones when it has ended.
    `gradient_checkpointing` recomputes activations to save memory: a third more time.

    `max_steps` caps the steps that the passes over the rows would take; 0 is no cap. (In TRL it replaces the passes, and -1 is none;
    here a small data set is still not seen more often than `num_train_epochs`.) Dev is measured on the way, not more often than every
    `eval_steps` (a short training sooner), and as seldom as a tenth of the time pays for. With an `early_stopping_patience` above 0
    it is measured every `eval_steps` and at the end, by what `metric_for_best_model` says: the loss of its answers, or the task's own
    score of answers that the model writes. Training stops when it has not got better so many times in a row, and the weights of
    the best are kept, whether or not it stopped.

    `beta` and `loss_type` are DPO's. `num_generations` answers at `temperature` are drawn for each row of rejection sampling, and at
    most so many for a row of which DPO's pairs are made.
    `num_distractors` passages stand beside the right one in RAFT, which `gold_share` of the rows have.
    """

    method: Method = "sft"
    use_peft: bool = True
    use_dora: bool = False
    use_rslora: bool = False
    load_in_4bit: bool = False
    num_train_epochs: float = 3.0
    learning_rate: float = 2e-4
    lr_scheduler_type: Scheduler = "cosine"
    warmup_steps: float = 0.1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: str | tuple[str, ...] = "all-linear"
    max_length: int = 1024
    truncation_mode: Truncation = "drop"
    assistant_only_loss: bool = True
    weight_decay: float = 0.0
    adam_beta2: float = 0.99
    max_grad_norm: float = 1.0
    seed: int = 0
    save_steps: int = 20
    save_total_limit: int = 1
    instruction: Instruction = "short"
    replay_share: float = 0.05
    max_steps: int = 0
    early_stopping_patience: int = 0
    eval_steps: int = 10
    metric_for_best_model: Best = "loss"
    beta: float = 0.1
    loss_type: Preference = "sigmoid"
    num_generations: int = 4
    temperature: float = 0.8
    num_distractors: int = 3
    gold_share: float = 0.8

    @staticmethod
    def of(record: Mapping[str, Any]) -> Recipe:
        """A recipe as JSON has it; keys that are not a recipe's are passed over. Raises TypeError where a value cannot be one."""
        known = {field.name for field in fields(Recipe)}
        values: dict[str, Any] = {
            name: tuple(one) if isinstance(one, list) else one for name, one in record.items() if name in known
        }
        return Recipe(**values)

    @property
    def title(self) -> str:
        """Which training this is, for people: "SFT, QLoRA"."""
        kind = "DoRA" if self.use_dora else "LoRA with rank-stabilised scaling" if self.use_rslora else "LoRA"
        kind = "QLoRA" if self.load_in_4bit and kind == "LoRA" else f"{kind} on a base in 4 bits" if self.load_in_4bit else kind
        return f"{TITLES[self.method]}, {kind if self.use_peft else 'all weights'}"

    def reads(self, key: str) -> bool:
        """Whether this setting does anything here."""
        return not self.ignores(key)

    def ignores(self, key: str) -> str:
        """Why this setting would do nothing here, and what to write instead; empty where it does something."""
        if key in ONLY_FOR and self.method not in ONLY_FOR[key]:
            return f"is for method {' and '.join(ONLY_FOR[key])}, and the method here is {self.method}: leave it out"
        if why := NOT_FOR.get(key, {}).get(self.method):
            return f"does nothing with method {self.method}: {why}; leave it out"
        if key in ADAPTER_KEYS and not self.use_peft:
            return "needs an adapter, and `use_peft: false` trains all weights: leave one of the two out"
        if key == "metric_for_best_model" and not self.early_stopping_patience:
            return "chooses nothing without an early stop: set `early_stopping_patience` too, or leave it out"
        if key == "warmup_steps" and self.lr_scheduler_type == "constant":
            return "`lr_scheduler_type: constant` has no warm-up: write `constant_with_warmup`, or leave it out"
        return ""

    def steps_of_a_pass(self, rows: int) -> int:
        """Optimiser steps for seeing this many rows once, as transformers counts them."""
        batches = math.ceil(rows / self.per_device_train_batch_size)
        return max(1, math.ceil(batches / self.gradient_accumulation_steps))

    def total_steps(self, rows: int) -> int:
        """Optimiser steps for this many rows, the cap included; an early stop may make them fewer."""
        steps = math.ceil(self.steps_of_a_pass(rows) * self.num_train_epochs)
        return min(steps, self.max_steps) if self.max_steps else steps

    def passes(self, rows: int) -> float:
        """How often the rows are seen, the cap included."""
        return min(self.num_train_epochs, self.total_steps(rows) / self.steps_of_a_pass(rows))


def recommended_recipe(
    rows: int, parameters: int, *, overrides: Mapping[str, Any], where: str, seed: int, context_length: int = sys.maxsize
) -> Recipe:
    """Good defaults for so many rows, a model of so many parameters and the method, overridden by the user's `train:` mapping.

    The model reads `context_length` tokens at most: the default of `max_length` is no more than that. `where` names the user's file in
    messages. Raises ProblemsError with every key that is unknown, of a wrong kind, beyond the model or without an effect.
    """
    chosen = _checked(overrides, where)
    if chosen.get("max_length", 0) > context_length:
        why = f"{chosen['max_length']:,} tokens are more than this model reads ({context_length:,}): write {context_length} or less"
        raise ProblemsError([Problem(where, 0, "train.max_length", why)])
    method, full = chosen.get("method", "sft"), not chosen.get("use_peft", True)
    recipe = Recipe(
        # Few rows are seen more often, so that there are about 100 steps at least; of many, two passes are enough
        # (Zhang et al. 2024, "When scaling meets LLM finetuning": more data is worth more than more passes). Preferences are
        # fitted in one (Rafailov et al. 2023; more of them drive both answers' likelihoods down).
        num_train_epochs=1.0 if method == "dpo" else 3.0 if rows < 2000 else 2.0,
        learning_rate=_learning_rate(method, parameters, full=full),
        # Small batches suit LoRA (Schulman 2025); fewer than 64 rows would leave a handful of steps.
        per_device_train_batch_size=8 if rows >= 64 else 4,
        # Adapters on all linear layers, the MLP above all (Dettmers et al. 2023, QLoRA; Schulman 2025); alpha = 2 r.
        lora_r=16,
        lora_alpha=32,
        # Runs are of a few hundred steps: 0.999 would remember the first, large gradients to the end.
        adam_beta2=0.99,
        # The reference, which DPO does not leave far behind, takes the place of replay.
        replay_share=0.0 if method == "dpo" else 0.05,
        # A row of RAFT holds several passages.
        max_length=min(context_length, 2048 if method == "raft" else 1024),
        seed=seed,
    )
    return replace(recipe, **chosen)


def _learning_rate(method: str, parameters: int, *, full: bool) -> float:
    """For LoRA 2e-4 up to 13B and 1e-4 beyond (Dettmers et al. 2023, QLoRA, table 9). A model of 135M learns form and extraction in
    three passes over 300 rows at 5e-4 and not yet at 2e-4; at 1e-3 it no longer tells intents apart (docs/training.md).

    All weights want a tenth of LoRA's rate (Schulman 2025; 2e-5 is TRL's own default). DPO wants a tenth of the SFT rate at most:
    Rafailov et al. 2023 take 1e-6 for all weights, which is TRL's default, and so 1e-5 for LoRA; small models five times that.
    """
    small = parameters < 500_000_000
    sft = 5e-4 if small else 2e-4 if parameters < 13_500_000_000 else 1e-4
    preference = 5e-5 if small else 1e-5
    rate = preference if method == "dpo" else sft
    return rate / 10 if full else rate


def _checked(overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {field.name: field for field in fields(Recipe)}
    problems, values = [], {}
    given = dict(overrides)
    if (short := SHORTHANDS.get(str(given.get("method")))) is not None:
        # Keys that are stated beside it win.
        given = {**short, **given, "method": "sft"}
    for key, value in given.items():
        if key not in known:
            message = f"unknown setting{did_you_mean(str(key), known)}"
        else:
            values[key], message = _read(key, value)
        if message:
            problems.append(Problem(where, 0, f"train.{key}", message))
    problems += _contradictions(values, where)
    if problems:
        raise ProblemsError(problems)
    return values


def _contradictions(values: Mapping[str, Any], where: str) -> list[Problem]:
    """Settings that are each right and do not go together: what one makes of another is nothing."""
    right = {key: value for key, value in values.items() if value is not None}
    if "method" in values and "method" not in right:
        return []
    stated = Recipe(**right)
    return [
        Problem(where, 0, f"train.{key}", why)
        for key, value in right.items()
        if (why := stated.ignores(key)) and (value or key not in OFF_IS_NOTHING)
    ]


_CHOICES: dict[str, tuple[str, ...]] = {
    "method": get_args(Method),
    "instruction": get_args(Instruction),
    "lr_scheduler_type": get_args(Scheduler),
    "truncation_mode": get_args(Truncation),
    "metric_for_best_model": get_args(Best),
    "loss_type": get_args(Preference),
}
_SWITCHES = ("use_peft", "use_dora", "use_rslora", "load_in_4bit", "gradient_checkpointing", "assistant_only_loss")
# Lowest value allowed, and whether the number is a whole one.
_NUMBERS: dict[str, tuple[float, bool]] = {
    "num_train_epochs": (0.01, False),
    "learning_rate": (1e-9, False),
    "warmup_steps": (0, False),
    "per_device_train_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "lora_r": (1, True),
    "lora_alpha": (1, True),
    "lora_dropout": (0, False),
    "max_length": (8, True),
    "weight_decay": (0, False),
    "adam_beta2": (0, False),
    "max_grad_norm": (0, False),
    "seed": (0, True),
    "save_steps": (1, True),
    "replay_share": (0, False),
    "max_steps": (0, True),
    "early_stopping_patience": (0, True),
    "eval_steps": (1, True),
    "save_total_limit": (1, True),
    "beta": (0.0001, False),
    "num_generations": (1, True),
    "temperature": (0.01, False),
    "num_distractors": (0, True),
    "gold_share": (0, False),
}
# Shares of something, and what decays by them.
_UNDER_ONE = ("lora_dropout", "adam_beta2", "replay_share")


def _read(key: str, value: Any) -> tuple[Any, str]:
    """The value as the recipe holds it, and what is wrong with it (empty where nothing is)."""
    if key in _CHOICES:
        choices = _CHOICES[key]
        if value in choices:
            return value, ""
        if key == "method":
            choices = (*choices, *SHORTHANDS)
        hint = did_you_mean(str(value), choices)
        return None, f"{value!r} is none of {', '.join(choices)}{hint}"
    if key in _SWITCHES:
        return (value, "") if isinstance(value, bool) else (None, f"must be true or false, not {value!r}")
    if key == "lora_target_modules":
        if isinstance(value, str) and value:
            return value, ""
        if isinstance(value, list | tuple) and value and all(isinstance(one, str) and one for one in value):
            return tuple(value), ""
        return None, "must be 'all-linear', a list of module names, such as [q_proj, v_proj], or a pattern of their whole names"
    lowest, whole = _NUMBERS[key]
    if isinstance(value, str):
        # YAML reads 1e-4 (without a dot) as text; what was meant is plain.
        try:
            value = float(value)
        except ValueError:
            return None, f"must be a number, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None, f"must be a number, not {value!r}"
    if whole and value != int(value):
        return None, f"must be a whole number, not {value!r}"
    if value < lowest:
        return None, f"must be at least {lowest:g}, not {value!r}"
    if key in _UNDER_ONE and value >= 1:
        return None, f"must be under 1, not {value!r}"
    if key == "gold_share" and value > 1:
        return None, f"must be at most 1, not {value!r}"
    return int(value) if whole else float(value), ""
