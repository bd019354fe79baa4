"""Replay rows: the base's own replies, apart from the general benchmarks, trained with an end only where they ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from evals.candidate import PromptFormat
from evals.engines.engine import Message, Request, Response
from evals.general.suites import item_texts, quick_suite, standard_suite
from evals.task.example import Example
from trainer.data import IGNORED, encode, encode_replay, load_tokenizer
from trainer.replay import Replay, base_replies, prompts, rows_for


def bare(text: str) -> str:
    return text.removeprefix("Question: ").removesuffix("\nAnswer:").lower()


def test_no_prompt_is_a_benchmark_item_or_nearly_one() -> None:
    assert len(set(prompts())) == len(prompts()) >= 100
    items = [text.lower() for suite in (quick_suite(), standard_suite()) for _, _, _, text in item_texts(suite.tasks)]
    near = {prompt: found for prompt in prompts() if (found := get_close_matches(bare(prompt), items, 1, 0.85))}
    assert not near


def test_the_share_is_of_all_rows_and_no_prompt_is_used_twice() -> None:
    assert rows_for(0.2, 300) == 75
    assert rows_for(0.0, 300) == 0
    assert rows_for(0.2, 100_000) == len(prompts())


class Base:
    """Answers each request with its own text; every second reply is cut off, the third is empty."""

    name = fingerprint = "base"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [1 for _ in texts]

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        for request in reversed(requests):
            number = int(request.id)
            text = "" if number == 2 else f"reply {request.messages[-1].content}"
            yield Response(request.id, text, 1, 1, 0.0, truncated=number % 2 == 1)


def test_replies_belong_to_their_prompts() -> None:
    replies = base_replies(Base(), 6, seed=3)
    assert len(replies) == 5
    assert all(one.reply == f"reply {one.prompt}" for one in replies)
    assert [one.finished for one in replies] == [True, False, False, True, False]
    assert replies == base_replies(Base(), 6, seed=3)


def test_a_reply_that_was_cut_off_is_trained_without_an_end(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    whole, cut = encode_replay(tokenizer, [Replay("hi", "yes", True), Replay("hi", "yes", False)], 200)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert whole["labels"][-1] == end
    assert cut == {name: ids[:-1] for name, ids in whole.items()}
    assert tokenizer.decode([one for one in cut["labels"] if one != IGNORED]) == "yes"
    asked = encode(tokenizer, PromptFormat(""), Example("x", (Message("user", "hi"),), "yes"), 200)
    assert whole == asked
