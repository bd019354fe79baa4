"""Our engine as a model of lm-eval: its requests go through shared prefixes and refilled batches, and come out with HFLM's own scores.

lm-eval's class for transformers models (HFLM) reads a question once for each of its choices, and generates in fixed batches that wait for
their slowest row. Here the choices of an item are one tree that is read once, and a row that ends makes room for the next. What is asked
is HFLM's to the token: how context and continuation are split, the token before an empty context, truncation from the left, windows of a
long text, stop strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evals.engines.decode import Row
from evals.engines.hf import HfEngine
from evals.engines.scoring import Choices
from evals.errors import AdvisorError

# Of a prompt and what may follow it: token ids.
Pair = tuple[Sequence[int], Sequence[int]]
# Of an item: the name of its task and its place there.
Doc = tuple[str, int]
# lm-eval's own limit where a task names none.
MAX_NEW_TOKENS = 256
GREEDY = {"until", "max_gen_toks", "do_sample", "temperature"}


class Finished:
    """Tells how many items are done: an item is one when the last of its requests is answered."""

    def __init__(self, docs: Sequence[Doc], told: Callable[[int], None]) -> None:
        self.docs = docs
        self.left = Counter(docs)
        self.told = told

    def answered(self, request: int) -> None:
        doc = self.docs[request]
        self.left[doc] -= 1
        if not self.left[doc]:
            self.told(1)


def scored(
    engine: HfEngine, pairs: Sequence[Pair], docs: Sequence[Doc], told: Callable[[int], None]
) -> list[tuple[float, bool]]:
    """(summed log-probability of the continuation, whether it is the greedy one) of each pair.

    Pairs of one item that have a context in common are one tree. What does not fit the model's context loses its beginning, as HFLM does
    it: the continuation is always whole. Raises AdvisorError where a continuation is empty or alone too long.
    """
    most = engine.context_length
    trees: dict[tuple[Doc, tuple[int, ...]], list[int]] = {}
    for number, (context, ending) in enumerate(pairs):
        if len(ending) > most:
            raise AdvisorError(
                f"a continuation of {len(ending)} tokens does not fit the context of {most}", where=docs[number][0]
            )
        trees.setdefault((docs[number], tuple(context[-(most + 1 - len(ending)) :])), []).append(number)
    choices = [Choices(context, tuple(tuple(pairs[one][1]) for one in numbers)) for (_, context), numbers in trees.items()]
    finished = Finished(docs, told)
    places = list(trees.values())
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    for at, ones in engine.likelihoods(choices):
        for number, one in zip(places[at], ones, strict=True):
            found[number] = one.logprob, one.greedy
            finished.answered(number)
    return found


def written(
    engine: HfEngine,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Mapping[str, Any]],
    docs: Sequence[Doc],
    told: Callable[[int], None],
) -> list[str]:
    """What the model writes behind each prompt, by lm-eval's generation settings. A prompt that leaves too little room loses its beginning.

    Raises AdvisorError for ways of sampling that the engine has not, and where the answer alone would fill the context.
    """
    special = special_tokens(engine)
    # Rows that end at the same marks go together.
    together: dict[frozenset[int], list[Row]] = {}
    for number, (ids, given) in enumerate(zip(prompts, settings, strict=True)):
        wanted = checked_settings(given, docs[number][0])
        limit, room = wanted["max_gen_toks"], engine.context_length - wanted["max_gen_toks"]
        if room < 1:
            raise AdvisorError(
                f"answers of {limit} tokens do not fit the context of {engine.context_length}", where=docs[number][0]
            )
        stop = [one for one in wanted["until"] if one]
        ends = frozenset(special[one] for one in stop if one in special)
        words = tuple(one for one in stop if one not in special)
        temperature = wanted["temperature"] if wanted["do_sample"] else 0.0
        # The same seed for each model that is asked: what is drawn differs only where the models do.
        row = Row(number, list(ids[-room:]), limit, words, temperature=temperature, seed=number)
        together.setdefault(ends, []).append(row)
    finished = Finished(docs, told)
    found = [""] * len(prompts)
    for ends, rows in together.items():
        for number, text in engine.completions(rows, sorted(ends)):
            found[number] = text
            finished.answered(number)
    return found


def special_tokens(engine: HfEngine) -> dict[str, int]:
    """Control tokens by how they are written: as stop strings they never show in a decoded text, and are known by their id."""
    return {one.content: number for number, one in engine.handle.tokenizer.added_tokens_decoder.items() if one.special}


def checked_settings(given: Mapping[str, Any], task: str) -> dict[str, Any]:
    """lm-eval's generation settings with nothing left open."""
    from lm_eval.models.utils import normalize_gen_kwargs

    found = dict(normalize_gen_kwargs(dict(given), MAX_NEW_TOKENS))
    odd = set(found) - GREEDY
    if (found["do_sample"] and odd) or found.get("num_beams", 1) != 1:
        raise AdvisorError(
            f"generation_kwargs has {', '.join(sorted(odd))}, which this engine has not",
            where=task,
            do="take greedy decoding (`do_sample: false`), or `temperature` alone.",
        )
    return {"temperature": 0.0, **found}


def fast_lm(engine: HfEngine, told: Callable[[int], None]) -> Any:
    """An `lm_eval.api.model.TemplateLM` over the engine, with its adapter where it has one. `told` hears of finished items."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class FastLM(TemplateLM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = engine.handle.tokenizer
            self.docs: list[Doc] = []
            self.known: dict[str, list[int]] = {}
            self.before_all = self.tokenizer.decode(self.prefix_token_id)

        @property
        def eot_token_id(self) -> int:
            return int(self.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            first = self.tokenizer.bos_token_id
            return self.eot_token_id if first is None else int(first)

        @property
        def max_length(self) -> int:
            return engine.context_length

        @property
        def tokenizer_name(self) -> str:
            return str(self.tokenizer.name_or_path).replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is None:
                if string in self.known:
                    return self.known[string]
                if has_bos_prefix(string, self.before_all):
                    add_special_tokens = False
            found: list[int] = self.tokenizer.encode(string, verbose=False, **_add_special_kwargs(add_special_tokens))
            return found

        def read_ahead(self, strings: Sequence[str]) -> None:
            """Token ids of many strings in one call: several times as fast as one by one."""
            new = [one for one in dict.fromkeys(strings) if not has_bos_prefix(one, self.before_all)]
            self.known = dict(zip(new, self.tokenizer(new, verbose=False)["input_ids"], strict=True)) if new else {}

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            text: str = self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return text

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            self.docs = [(one.task_name, one.doc_id) for one in requests]
            asked = [one.args for one in requests if one.args[0]]
            self.read_ahead([*(context.rstrip() for context, _ in asked), *(context + ending for context, ending in asked)])
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return found

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return scored(engine, [one[1:] for one in requests], self.docs, told)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
            windows = [
                (at, window)
                for at, one in enumerate(requests)
                for window in map(
                    make_disjoint_window,
                    get_rolling_token_windows(self.tok_encode(one.args[0]), self.prefix_token_id, self.max_length, 1),
                )
            ]
            docs = [(requests[at].task_name, requests[at].doc_id) for at, _ in windows]
            sums = [0.0] * len(requests)
            for (at, _), (value, _) in zip(windows, scored(engine, [one for _, one in windows], docs, told), strict=True):
                sums[at] += value
            return sums

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
            prompts = [one.args[0] for one in requests]
            self.read_ahead(prompts)
            docs = [(one.task_name, one.doc_id) for one in requests]
            return written(engine, [self.tok_encode(one) for one in prompts], [one.args[1] for one in requests], docs, told)

    return FastLM()
