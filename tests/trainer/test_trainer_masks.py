"""The loss sees each of the assistant's turns and its end mark, and nothing else, in the chat templates of seven families.

Two oracles: the strings that stand beside each template, written by hand; and trl's own patched template of the family, whose marks say
which tokens are the assistant's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evals.candidate import PromptFormat
from evals.engines.chat import chat_of, ids_of
from evals.engines.engine import Message, ToolCall
from evals.task.example import Example
from tests.conftest import CHATML
from trainer.data import IGNORED, encode, labelled

# As published with zephyr-7b-beta and Mistral-7B-Instruct-v0.1.
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TALK = Example(
    "talk",
    (
        Message("system", "Be brief."),
        Message("user", "Is it red?"),
        Message("assistant", "Yes."),
        Message("user", "And blue?"),
        Message("assistant", "No, never <b>."),
        Message("user", "Sure?"),
    ),
    "Yes, sure.",
)


@dataclass(frozen=True)
class Family:
    """`template` is a text or trl's file; `learnt` what the loss sees of TALK; `oracle` is trl's file with marks."""

    template: str
    special: tuple[str, ...]
    learnt: str
    oracle: str = ""
    eos: str = "</s>"
    unsure: int = 0


def each(end: str) -> str:
    return "".join(f"{text}{end}" for text in ("Yes.", "No, never <b>.", "Yes, sure."))


IM = ("<|im_start|>", "<|im_end|>")
LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "chatml": Family(CHATML, IM, each("<|im_end|>"), eos="<|im_end|>"),
    "llama3": Family("llama3", LLAMA, each("<|eot_id|>"), "llama3_training", eos="<|eot_id|>"),
    "gemma": Family(
        "gemma", ("<start_of_turn>", "<end_of_turn>", "<eos>"), each("<end_of_turn>"), "gemma_training", eos="<eos>"
    ),
    "qwen2.5": Family("qwen2_5", IM, each("<|im_end|>"), "qwen2_5_training", eos="<|im_end|>"),
    # Earlier turns lose the thoughts that the same turn has while it is the last: they are left out, and counted.
    "qwen3": Family("qwen3", IM, "<think>\n\n</think>\n\nYes, sure.<|im_end|>", eos="<|im_end|>", unsure=2),
    "phi3": Family(
        "phi3",
        ("<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        each("<|end|>"),
        "phi3_training",
        eos="<|endoftext|>",
    ),
    "zephyr": Family(ZEPHYR, ("<s>", "</s>"), each("</s>")),
    "mistral": Family(MISTRAL, ("<s>", "</s>"), each("</s>")),
}


def shipped(name: str) -> str:
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def words(special: tuple[str, ...], eos: str) -> Any:
    """Byte-level BPE with a few merges, cut into words as Llama 3 and Qwen do it, with a family's special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("e", "s"), ("Y", "es"), ("u", "r"), ("s", "ur"), ("Ġ", "b"), ("Ċ", "Ċ"), (".", "Ċ")]
    vocabulary = {token: at for at, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    # Special, and yet not named in the tokeniser's settings, as Gemma's and Llama's end of turn.
    bpe.add_special_tokens([AddedToken(one, special=True) for one in special])
    # `<b>` is an added token that is text, as Gemma has them; Qwen's <think> is one too.
    bpe.add_tokens([AddedToken("<think>"), AddedToken("</think>"), AddedToken("<b>")])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, pad_token=eos, bos_token=special[0])


def tokenizer_of(family: Family) -> Any:
    found = words(family.special, family.eos)
    found.chat_template = family.template if "{" in family.template else shipped(family.template)
    return found


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def learnt(tokenizer: Any, row: dict[str, list[int]]) -> str:
    return str(tokenizer.decode([one for one in row["labels"] if one != IGNORED]))


def test_every_turn_of_the_assistant_is_learnt_with_its_end_and_nothing_else(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    row = encode(tokenizer, PromptFormat(""), TALK, 10_000)
    assert row is not None
    assert learnt(tokenizer, row) == family.learnt
    assert all(label in (IGNORED, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    assert labelled(tokenizer, PromptFormat(""), TALK).unsure == family.unsure


def test_without_it_the_last_turn_alone_is_learnt(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    row = encode(tokenizer, PromptFormat(""), TALK, 10_000, assistant_only_loss=False)
    every = encode(tokenizer, PromptFormat(""), TALK, 10_000)
    assert row is not None
    assert every is not None
    assert row["input_ids"] == every["input_ids"]
    assert family.learnt.endswith(learnt(tokenizer, row))
    assert "Yes, sure." in learnt(tokenizer, row)
    assert "never" not in learnt(tokenizer, row)


@pytest.mark.parametrize("name", [name for name, one in FAMILIES.items() if one.oracle])
def test_trl_marks_the_same_tokens(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    row = encode(tokenizer, PromptFormat(""), TALK, 10_000)
    assert row is not None
    turns = chat_of(tokenizer, (*TALK.messages, Message("assistant", TALK.target)), asks=False).turns
    theirs = tokenizer.apply_chat_template(
        [one.turn() for one in turns], chat_template=shipped(family.oracle), return_assistant_tokens_mask=True
    )
    # Theirs goes on to the line end (and Phi's end of text) behind the mark, and Qwen's begins with the line end before the answer.
    assert theirs["input_ids"][: len(row["input_ids"])] == row["input_ids"]
    ours = [label != IGNORED for label in row["labels"]]
    more = [
        token for token, own, mask in zip(row["input_ids"], ours, theirs["assistant_masks"], strict=False) if mask and not own
    ]
    assert all(mask for own, mask in zip(ours, theirs["assistant_masks"], strict=False) if own)
    assert tokenizer.decode(more).strip() == ""
    assert sum(ours) > 20


def test_every_labelled_turn_stands_behind_the_prompt_that_asks_for_it(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    row = encode(tokenizer, PromptFormat(""), TALK, 10_000)
    assert row is not None
    prompts = [TALK.messages[:at] for at in (2, 4, 6)][family.unsure :]
    for prompt in ids_of(tokenizer, [chat_of(tokenizer, one) for one in prompts]):
        assert row["input_ids"][: len(prompt)] == prompt
        assert (row["labels"][len(prompt) - 1], row["labels"][len(prompt)]) == (IGNORED, row["input_ids"][len(prompt)])


def test_a_call_is_learnt_with_its_turn() -> None:
    family = FAMILIES["qwen2.5"]
    tokenizer = tokenizer_of(family)
    call = Message("assistant", "", (ToolCall("look_up", '{"at": 1}', "a"),))
    row = encode(
        tokenizer,
        PromptFormat(""),
        Example("tooled", (Message("user", "Weather?"), call, Message("tool", "sunny")), "Sunny."),
        10_000,
    )
    assert row is not None
    calls = '<tool_call>\n{"name": "look_up", "arguments": {"at": 1}}\n</tool_call><|im_end|>'
    # The template writes the line end before a call by itself, and the prompt has it already.
    assert learnt(tokenizer, row) == f"{calls}Sunny.<|im_end|>"


def test_marks_in_a_users_text_stay_text(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    mark = family.special[-1] if family.eos == "</s>" else family.eos
    quoted = Example("quotes", (Message("user", f"What is {mark} for?"),), f"{mark} ends a turn.")
    plain = Example("plain", (Message("user", "What is MARK for?"),), "MARK ends a turn.")
    (one, other) = (encode(tokenizer, PromptFormat(""), row, 10_000) for row in (quoted, plain))
    assert one is not None
    assert other is not None
    number = tokenizer.convert_tokens_to_ids(mark)
    assert one["input_ids"].count(number) == other["input_ids"].count(number)
    assert tokenizer.decode(one["input_ids"]) == tokenizer.decode(other["input_ids"]).replace("MARK", mark)
    assert learnt(tokenizer, one) == learnt(tokenizer, other).replace("MARK", mark)


def test_a_chat_without_marks_has_the_ids_that_it_always_had(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    chat = chat_of(tokenizer, TALK.messages)
    assert ids_of(tokenizer, [chat]) == [tokenizer(chat.text, add_special_tokens=False)["input_ids"]]
