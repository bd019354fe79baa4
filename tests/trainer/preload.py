"""What every training worker imports, for the process that `forked` forks them from."""

import gc

import datasets  # noqa: F401
import pandas  # noqa: F401
import peft  # noqa: F401
import transformers
import trl
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import trainer.worker  # noqa: F401

# Both load these late, when they are first asked for.
LOADED = (
    trl.SFTTrainer,
    trl.DPOTrainer,
    transformers.AutoModelForCausalLM,
    transformers.LlamaForCausalLM,
    transformers.Trainer,
)

# Each worker would compile the same patterns once more, and walk all that is imported in search of garbage.
get_checkpoint_conversion_mapping("llama")
gc.collect()
gc.freeze()
