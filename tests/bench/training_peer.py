"""One of TRL's two trainings for `training.py`: prints a JSON line a step, and leaves its adapter where ours leaves its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from training_parts import WORK, encoded, job_of

# What TRL's documentation recommends for speed and a processor can do. Not on a processor: Liger and Flash Attention (hence packing without
# seeing one's neighbours). Not worth it here: torch_compile, which takes 90 s before the first step.
BEST: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
    "model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "eager"},
}


def main(name: str, peer: str, *, fast: bool) -> None:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from evals.engines.machine import measure_machine
    from trainer.model import peft_config

    out = sys.stdout
    sys.stdout = sys.stderr
    torch.set_num_threads(measure_machine().threads)
    job = job_of(name, fast=fast)
    recipe = job.recipe
    tokenizer, rows = encoded(job)
    folder = WORK / name / peer

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                print(json.dumps({"step": state.global_step, "loss": logs["loss"]}), file=out, flush=True)

    config = SFTConfig(
        output_dir=str(folder / "checkpoints"),
        use_cpu=not torch.cuda.is_available(),
        num_train_epochs=recipe.num_train_epochs,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_steps,
        adam_beta2=recipe.adam_beta2,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **(BEST if peer == "trl_best" else {}),
    )
    set_seed(recipe.seed)
    trainer = SFTTrainer(
        model=str(job.model_folder),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config(recipe),
        callbacks=[Told()],
    )
    trainer.train()
    trainer.model.save_pretrained(folder / "adapter")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(sys.argv[1], sys.argv[2], fast="--fast" in sys.argv)
