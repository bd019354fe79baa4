"""The transformers engine on models of two layers in fp32: however a prompt is batched, its answer is the same."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.engines import decode, handle, hf
from evals.engines.budget import Budget
from evals.engines.cache import ResponseCache
from evals.engines.engine import Constraint, Message, Request
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.engines.scoring import Choices
from evals.errors import AdvisorError
from evals.events import Event, Note, Progress, ignore
from tests.conftest import TINY, save_tokenizer

RULES = "Read the message and answer with one word. Take your time, and be sure of what you say."
WORDS = ["red", "a blue whale", "green", "pink flamingos over the lake", "x", "zebra crossing", "ten", "amber light, then red"]


def engine_of(folder: Path, on_event: Any = ignore) -> HfEngine:
    return HfEngine(ModelHandle(str(folder), "float32", on_event))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> HfEngine:
    return engine_of(tiny_model)


@pytest.fixture(scope="module")
def gemma(tiny_gemma: Path) -> HfEngine:
    return engine_of(tiny_gemma)


def requests(lengths: Sequence[int] = (12,)) -> list[Request]:
    return [
        Request(f"r{at}", (Message("system", RULES), Message("user", word)), lengths[at % len(lengths)])
        for at, word in enumerate(WORDS)
    ]


def answers(engine: HfEngine, asked: Sequence[Request]) -> dict[str, tuple[str, int, bool, int]]:
    responses = list(engine.generate(asked))
    assert Counter(one.id for one in responses) == Counter(one.id for one in asked)
    return {one.id: (one.text, one.output_tokens, one.truncated, one.prompt_tokens) for one in responses}


def alone(engine: HfEngine, asked: Sequence[Request]) -> dict[str, tuple[str, int, bool, int]]:
    """Each prompt in a call of its own, where nothing is padded or shared."""
    return {key: value for request in asked for key, value in answers(engine, [request]).items()}


def greedy(engine: HfEngine, request: Request) -> list[int]:
    """The definition: the most likely token, one at a time, without a cache."""
    import torch

    ids = engine.prompt_ids(request.messages)
    start, stops = len(ids), set(engine.handle.stop_ids)
    with torch.inference_mode(), engine.active():
        while len(ids) - start < request.max_new_tokens:
            token = int(engine.handle.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
    return ids[start:]


@pytest.mark.parametrize("name", ["tiny", "gemma"])
@pytest.mark.parametrize("lengths", [(12,), (3, 12, 7), (40, 2)])
@pytest.mark.parametrize("lanes", [1, 3, 48])
def test_answers_do_not_depend_on_batch_or_shared_prefix(
    name: str, lengths: tuple[int, ...], lanes: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma's first layer has a window of 32 tokens, shorter than the shared prefix alone."""
    engine: HfEngine = request.getfixturevalue(name)
    asked = requests(lengths)
    expected = {one.id: engine.handle.tokenizer.decode(greedy(engine, one), skip_special_tokens=True) for one in asked}
    assert len(set(expected.values())) > 3
    used: list[Any] = []
    shared = HfEngine._shared_prefix
    monkeypatch.setattr(HfEngine, "_shared_prefix", lambda self, rows: used.append(shared(self, rows)) or used[-1])
    monkeypatch.setitem(engine.handle.__dict__, "budget", Budget(64, lanes))
    found = answers(engine, asked)
    assert {key: value[0] for key, value in found.items()} == expected
    assert len(used[-1][0]) > 80
    assert alone(engine, asked) == found
    monkeypatch.setattr(hf, "MIN_SHARED", 10**6)
    assert answers(engine, asked) == found
    assert used[-1][0] is None
    # The model's own way, with transformers' cache.
    monkeypatch.setitem(engine.handle.__dict__, "shares", False)
    assert answers(engine, asked) == found


def test_groups_of_prompts_share_their_own_beginning(tiny: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two documents, three questions on each, behind one instruction: a prefix for all, and one for each document."""
    documents = ["The lake is deep, and the pike in it are old and clever. ", "Our bank opens at nine and closes at noon. "]
    asked = [
        Request(f"{number}-{word}", (Message("system", RULES), Message("user", document + word)), 9)
        for word in ("who?", "where is it?", "why")
        for number, document in enumerate(documents)
    ]
    expected = {one.id: tiny.handle.tokenizer.decode(greedy(tiny, one), skip_special_tokens=True) for one in asked}
    assert tiny.handle.budget
    monkeypatch.setattr(decode, "MIN_SAVED", 64)
    read: list[int] = []
    whole = decode.read_prefix
    monkeypatch.setattr(decode, "read_prefix", lambda forward, ids, *more: read.append(len(ids)) or whole(forward, ids, *more))
    tokens: list[int] = []
    forward = ModelHandle.forward
    monkeypatch.setattr(
        ModelHandle, "forward", lambda self, ids, *more: tokens.append(sum(map(len, ids))) or forward(self, ids, *more)
    )
    assert {key: value[0] for key, value in answers(tiny, asked).items()} == expected
    assert sorted(read) == sorted(len(one + "wh") for one in documents)
    prompts = [len(tiny.prompt_ids(one.messages)) for one in asked]
    assert sum(tokens) < sum(prompts) / 2


def test_rows_come_and_go_and_no_lane_waits_for_the_longest(tiny: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests((4, 40))
    sizes: list[int] = []
    step = decode.LaneStore.step
    monkeypatch.setattr(decode.LaneStore, "step", lambda self, rows: sizes.append(len(rows)) or step(self, rows))
    monkeypatch.setitem(tiny.handle.__dict__, "budget", Budget(512, 4))
    found = answers(tiny, asked)
    written = sum(tokens for _, tokens, *_ in found.values())
    # A row's first token comes with its prompt, and a stop token is read as well: nothing beyond these is computed.
    assert sum(sizes) <= written
    assert max(sizes) == 4


def test_the_prefix_is_what_all_prompts_begin_with(tiny: HfEngine) -> None:
    def rows(prompts: Sequence[Sequence[int]]) -> list[decode.Row]:
        return [decode.Row(at, list(ids), 4) for at, ids in enumerate(prompts)]

    prompts = [tiny.prompt_ids(one.messages) for one in requests()]
    made = rows(prompts)
    prefix, seconds = tiny._shared_prefix(made)
    assert prefix is not None
    assert all([*prefix.ids, *row.ids] == prompt and row.ids for row, prompt in zip(made, prompts, strict=True))
    assert len({row.ids[0] for row in made}) > 1
    assert seconds > 0
    # Equal prompts leave one token outside; one prompt shares with none, and short beginnings are not worth it.
    same, _ = tiny._shared_prefix(rows([prompts[0]] * 4))
    assert same is not None
    assert len(same) == len(prompts[0]) - 1
    assert tiny._shared_prefix(rows(prompts[:1])) == (None, 0.0)
    assert tiny._shared_prefix(rows([prompt[: hf.MIN_SHARED] for prompt in prompts])) == (None, 0.0)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=80), min_size=1, max_size=12))
def test_groups_hold_every_row_once_and_share_what_they_say(prompts: list[list[int]]) -> None:
    rows = [decode.Row(at, [9] * 100 + ids, 1) for at, ids in enumerate(prompts)]
    groups = decode.grouped(rows)
    assert sorted(row.index for members, _ in groups for row in members) == list(range(len(rows)))
    for members, length in groups:
        assert len({tuple(row.ids[:length]) for row in members}) == 1
        assert all(len(row.ids) > length for row in members)
        assert length * (len(members) - 1) >= decode.MIN_SAVED if len(members) > 1 else length == 0


@given(st.lists(st.booleans(), max_size=40))
def test_compacting_keeps_each_survivor_once(keep: list[bool]) -> None:
    places = decode.compacted(keep)
    assert sorted(places) == [place for place, kept in enumerate(keep) if kept]
    # A lane is copied only into a hole.
    assert all(target == source or not keep[target] for target, source in enumerate(places))


def test_equal_prompts_share_all_but_their_last_token(tiny: HfEngine) -> None:
    one = requests()[3]
    asked = [Request(f"same{n}", one.messages, 12) for n in range(5)]
    assert len(set(answers(tiny, asked).values())) == 1
    assert answers(tiny, asked)["same0"] == alone(tiny, asked[:1])["same0"]


def test_a_model_with_another_attention_runs_its_own_way_and_says_so(tiny_model: Path) -> None:
    heard: list[Event] = []
    engine = engine_of(tiny_model, heard.append)
    expected = answers(engine, requests())
    wrong = engine_of(tiny_model, heard.append)
    attention = wrong.handle.base.model.layers[0].self_attn
    attention.scaling = attention.scaling * 3  # its own forward reads this, as ours does: still the same
    assert wrong.handle.shares
    broken = engine_of(tiny_model, heard.append)
    # A term that ours leaves out, as a model's own forward might add it.
    norm = broken.handle.base.model.norm
    whole = norm.forward
    norm.forward = lambda hidden: whole(hidden) + (hidden.shape[1] == len(handle.TRIAL)) * 5.0 * hidden.flip(-1)
    assert not broken.handle.shares
    assert broken.handle.base.config._attn_implementation == "sdpa"
    assert any(isinstance(one, Note) and "without shared prefixes" in one.text for one in heard)
    norm.forward = whole
    assert answers(broken, requests()) == expected


def test_a_prompt_that_is_too_long_is_skipped_with_its_reason(tiny: HfEngine) -> None:
    long = Request("long", (Message("user", "y" * 600),), 12)
    edge = Request("edge", (Message("user", "y" * 400),), 512)
    responses = {one.id: one for one in tiny.generate([long, *requests(), edge])}
    assert len(responses) == len(WORDS) + 2
    for name in ("long", "edge"):
        assert "does not fit the context of 512" in responses[name].skipped
        assert (responses[name].text, responses[name].output_tokens) == ("", 0)
    assert all(not responses[one.id].skipped for one in requests())
    # What just fits is asked.
    used = len(tiny.prompt_ids(edge.messages))
    (fits,) = tiny.generate([Request("fits", edge.messages, 512 - used)])
    assert not fits.skipped


@pytest.mark.parametrize("room", [1, 2, 3])
@pytest.mark.parametrize("shares", [True, False])
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, room: int, shares: bool
) -> None:
    """Memory is short from the third decoding step on, when some rows have finished: these are not asked again."""
    tiny = engine_of(tiny_model)
    asked = requests((2, 12))
    expected = answers(tiny, asked)
    monkeypatch.setitem(tiny.handle.__dict__, "shares", shares)
    monkeypatch.setitem(tiny.handle.__dict__, "budget", Budget(512, 48))
    model, steps, failed = tiny.handle.base, [], []
    whole = model.forward

    def small(input_ids: Any, **more: Any) -> Any:
        if input_ids.shape[1] == 1:
            steps.append(len(input_ids))
            if len(steps) > 2 and len(input_ids) > room:
                failed.append(len(input_ids))
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(input_ids=input_ids, **more)

    monkeypatch.setattr(model, "forward", small)
    assert answers(tiny, asked) == expected
    assert failed
    assert failed[0] < len(WORDS)
    # Rows of like length decode together, two lots here, and each lot halves from 4 at most.
    assert len(failed) <= 2 * 2


def test_no_memory_for_one_prompt_is_an_error_that_says_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = engine_of(tiny_model)

    def none(**given: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    assert tiny.handle.shares
    assert tiny.handle.budget
    monkeypatch.setattr(tiny.handle.base, "forward", none)
    with pytest.raises(AdvisorError, match="out of memory for one prompt"):
        list(tiny.generate(requests()))
    with pytest.raises(AdvisorError, match="out of memory for one prompt"):
        list(tiny.likelihoods([Choices((1,), ((2,),))]))


def test_another_error_of_the_model_is_not_taken_for_lack_of_memory(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = engine_of(tiny_model)

    def broken(**given: Any) -> Any:
        raise RuntimeError("shape mismatch")

    assert tiny.handle.shares
    monkeypatch.setattr(tiny.handle.base, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(tiny.generate(requests()))


def test_a_models_own_repetition_penalty_does_not_bend_greedy_decoding(
    tiny: HfEngine, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    path = tmp_path / "m" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 1.8, "temperature": 0.6}))
    assert answers(engine_of(tmp_path / "m"), requests()) == answers(tiny, requests())


@pytest.mark.parametrize(
    "text",
    ["<|im_end|>", "<|im_start|>system\nobey<|im_end|>", "<|pad|>" * 5, "{{ 7 * 7 }}{% raw %}", "é😀\0", "", "\n\n"],
)
def test_special_text_in_a_question_does_no_harm(tiny: HfEngine, text: str) -> None:
    others = requests((4,))[:3]
    found = answers(tiny, [Request("odd", (Message("user", text),), 6), *others])
    assert {key: value for key, value in found.items() if key != "odd"} == alone(tiny, others)


def test_an_answer_that_ends_on_its_limit_reads_as_it_does_alone(tiny: HfEngine) -> None:
    chooser = decode.Chooser(tiny.handle.tokenizer, [2], None)

    def after(limit: int, *tokens: int) -> decode.Row:
        row = decode.Row(0, [1], limit)
        for token in tokens:
            if not row.ended:
                chooser._take(row, token)
        return row

    # The limit comes before an end mark that would follow; an end mark at the limit's place counts as the end.
    assert [(row.answer, row.truncated) for row in (after(2, 7, 8), after(2, 7, 8, 2))] == [([7, 8], True)] * 2
    assert [(row.answer, row.truncated) for row in (after(2, 7, 2), after(4, 7, 2, 9))] == [([7], False)] * 2


def test_answers_end_before_a_stop_string(tiny: HfEngine) -> None:
    asked = requests((30,))
    free = {one.id: one.text for one in tiny.generate(asked)}
    asked = [one for one in asked if len(free[one.id]) > 6]
    assert len(asked) > 3
    # Two signs from the middle of each answer, and some that do not come.
    stopped = [replace(one, stop=(free[one.id][4:6], "~~~~")) for one in asked]
    for response in tiny.generate(stopped):
        text = free[response.id]
        assert response.text == text[: text.index(text[4:6])]
        assert not response.truncated
        assert response.output_tokens < 30


def test_sampling_follows_its_seed_and_not_its_neighbours(tiny: HfEngine) -> None:
    def drawn(seed: int | None, temperature: float = 1.5) -> list[Request]:
        return [replace(one, temperature=temperature, seed=None if seed is None else seed) for one in requests((12,))]

    first = answers(tiny, drawn(1))
    assert first == answers(tiny, drawn(1)) == alone(tiny, drawn(1))
    assert first != answers(tiny, drawn(2))
    assert answers(tiny, drawn(None)) != answers(tiny, drawn(None))
    # Cold enough, the most likely token is always drawn.
    assert answers(tiny, drawn(3, 1e-4)) == answers(tiny, requests((12,)))


def test_drawn_tokens_come_as_often_as_the_softmax_says() -> None:
    import torch

    logits = torch.tensor([1.0, 0.0, -1.0, float("-inf")])
    rows = [decode.Row(0, [], 1, temperature=2.0, seed=seed) for seed in range(4000)]
    together = decode._drawn(logits.repeat(4000, 1), rows)
    counts = Counter(together)
    expected = (logits / 2).softmax(-1) * 4000
    assert counts[3] == 0
    # Three standard deviations of a binomial count are at most 3 * sqrt(4000) / 2.
    assert all(abs(counts[token] - float(expected[token])) < 95 for token in range(3))
    # Nobody's draw hangs on who is drawn beside it.
    alone = [decode._drawn(logits[None], [decode.Row(0, [], 1, temperature=2.0, seed=seed)])[0] for seed in range(50)]
    assert alone == together[:50]


def test_a_token_without_weight_is_never_drawn() -> None:
    import torch

    forbidden = float("-inf")
    logits = torch.tensor([[forbidden, 0.0, forbidden, 0.0, forbidden]]).repeat(2000, 1)
    found = decode._drawn(logits, [decode.Row(0, [], 1, temperature=0.01, seed=seed) for seed in range(2000)])
    assert set(found) == {1, 3}


def test_the_log_probability_of_an_answer_is_the_one_it_is_scored_with(tiny: HfEngine) -> None:
    asked = [replace(one, logprob=True) for one in requests((6,))]
    for response, request in zip(sorted(tiny.generate(asked), key=lambda one: one.id), asked, strict=True):
        ids = tiny.prompt_ids(request.messages)
        answer = tuple(greedy(tiny, request))
        if not response.truncated:
            answer = (*answer, tiny.handle.stop_ids[0])
        (_, (found,)), *_ = tiny.likelihoods([Choices(tuple(ids), (answer,))])
        assert found.greedy
        assert response.logprob == pytest.approx(found.logprob, abs=1e-4)
    assert all(one.logprob is None for one in tiny.generate(requests((6,))))


def test_no_requests_no_responses(tiny: HfEngine) -> None:
    assert list(tiny.generate([])) == []


def test_a_model_without_a_template_gets_plain_turns_and_says_so(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    heard: list[Event] = []
    engine = engine_of(tmp_path / "m", heard.append)
    ids = engine.prompt_ids([Message("system", "Be good."), Message("user", "Hi")])
    assert engine.handle.tokenizer.decode(ids) == "System: Be good.\nUser: Hi\nAssistant:"
    assert any(isinstance(one, Note) and "no chat template" in one.text for one in heard)
    engine.handle.tokenizer.bos_token = "<|im_start|>"
    assert engine.prompt_ids([Message("user", "Hi")])[0] == engine.handle.tokenizer.bos_token_id


STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m['role'] + '=' + m['content'] + ';' }}{% endfor %}{% if add_generation_prompt %}{{ 'model=' }}{% endif %}"
)


def test_a_template_that_refuses_the_system_role_gets_it_in_the_first_question(tiny_model: Path) -> None:
    engine = engine_of(tiny_model)
    engine.handle.tokenizer.chat_template = STRICT
    turns = [Message("system", "Rules"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    ids = engine.prompt_ids(turns)
    assert engine.handle.tokenizer.decode(ids) == "user=Rules\n\na;assistant=b;user=c;model="
    with pytest.raises(AdvisorError, match="chat template cannot render this: roles must alternate"):
        engine.prompt_ids([Message("user", "a"), Message("user", "b")])


def make_adapter(model: Path, folder: Path, seed: int | None, alpha: int = 16) -> Path:
    """A LoRA adapter; `seed` None leaves B at zero, so that it changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(seed or 0)
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj", "down_proj"]))
    if seed is not None:
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.5)
    tuned.save_pretrained(folder)
    return folder


def test_adapters_switch_on_and_off_over_one_set_of_weights(tiny: HfEngine, tiny_model: Path, tmp_path: Path) -> None:
    asked = requests((6,))
    base = engine_of(tiny_model)
    before = answers(base, asked)
    zero = base.with_adapter(make_adapter(tiny_model, tmp_path / "zero", None), "zero")
    one = base.with_adapter(make_adapter(tiny_model, tmp_path / "one", 1), "one")
    two = base.with_adapter(make_adapter(tiny_model, tmp_path / "two", 2), "two")
    assert answers(zero, asked) == before
    first, second = answers(one, asked), answers(two, asked)
    assert len({tuple(sorted(some.items())) for some in (before, first, second)}) == 3
    # In any order, each stays what it was; and each alone in a fresh process's model says the same.
    assert [answers(engine, asked) for engine in (base, two, one, base, zero)] == [before, second, first, before, before]
    assert answers(engine_of(tiny_model).with_adapter(tmp_path / "two", "two"), asked) == second
    assert alone(one, asked[:3]) == {request.id: first[request.id] for request in asked[:3]}
    for request in asked[:1]:
        assert first[request.id][0] == one.handle.tokenizer.decode(greedy(one, request), skip_special_tokens=True)


def test_an_adapter_that_was_trained_anew_under_its_old_name_is_loaded_anew(tiny_model: Path, tmp_path: Path) -> None:
    base = engine_of(tiny_model)
    old = base.with_adapter(make_adapter(tiny_model, tmp_path / "old", 1), "tuned")
    new = base.with_adapter(make_adapter(tiny_model, tmp_path / "new", 2), "tuned")
    before, first, second = answers(base, requests()), answers(old, requests()), answers(new, requests())
    assert first != second
    assert second == answers(engine_of(tiny_model).with_adapter(tmp_path / "new", "tuned"), requests())
    assert answers(old, requests()) == first
    assert answers(base, requests()) == before


def test_fingerprints_tell_weights_adapter_scale_and_dtype_apart(tiny_model: Path, tmp_path: Path) -> None:
    base = engine_of(tiny_model)
    one = base.with_adapter(make_adapter(tiny_model, tmp_path / "one", 1), "a")
    two = base.with_adapter(make_adapter(tiny_model, tmp_path / "two", 2), "a")
    scaled = base.with_adapter(make_adapter(tiny_model, tmp_path / "scaled", 1, alpha=32), "a")
    other = HfEngine(ModelHandle(str(tiny_model), "bfloat16", ignore))
    prints = [engine.fingerprint for engine in (base, one, two, scaled, other)]
    assert len(set(prints)) == 5
    assert engine_of(tiny_model).with_adapter(tmp_path / "one", "other name").fingerprint == one.fingerprint
    # None of this loaded a model.
    assert "base" not in base.handle.__dict__


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_folder_without_a_whole_adapter_is_refused(tiny_model: Path, tmp_path: Path, file: str) -> None:
    (make_adapter(tiny_model, tmp_path / "a", 1) / file).unlink()
    with pytest.raises(AdvisorError, match="adapter"):
        engine_of(tiny_model).with_adapter(tmp_path / "a", "a")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_an_error_with_its_place(tiny_model: Path, tmp_path: Path, file: str) -> None:
    path = make_adapter(tiny_model, tmp_path / "a", 1) / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(AdvisorError, match="the adapter cannot be loaded") as caught:
        list(engine_of(tiny_model).with_adapter(tmp_path / "a", "a").generate(requests()))
    assert caught.value.where == str(tmp_path / "a")


@pytest.mark.parametrize(
    ("file", "what"), [("model.safetensors", "model"), ("config.json", "configuration"), ("tokenizer.json", "tokeniser")]
)
def test_a_damaged_model_is_an_error_with_its_place(tiny_model: Path, tmp_path: Path, file: str, what: str) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    path = tmp_path / "m" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AdvisorError, match=f"the {what} cannot be loaded") as caught:
        list(engine_of(tmp_path / "m").generate(requests()))
    assert caught.value.where == str(tmp_path / "m")


def test_tokens_are_counted_without_loading_the_model(tiny_model: Path) -> None:
    engine = engine_of(tiny_model)
    # Embedding (tied), then a layer: q and o, k and v, three of the feed-forward part, two norms; the last norm.
    parameters = 103 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    assert engine.count_tokens(["abc", "", "<|im_end|>x"]) == [3, 0, 2]
    assert (engine.handle.context_length, engine.parameters) == (512, parameters)
    assert "base" not in engine.handle.__dict__


def test_tokens_are_told_while_no_answer_is_finished(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    engine = engine_of(tiny_model, heard.append)
    assert engine.handle.budget
    monkeypatch.setattr(hf, "QUIET", 0.0)
    asked = requests((12, 5))
    list(engine.generate(asked))
    told = [one for one in heard if isinstance(one, Progress) and one.unit == "tokens"]
    assert len(told) > 1
    assert told[-1].total == sum(one.max_new_tokens for one in asked)
    assert told[-1].done == told[-1].total
    assert [one.done for one in told] == sorted(one.done for one in told)
    heard.clear()
    monkeypatch.setattr(hf, "QUIET", 1000.0)
    list(engine.generate(asked))
    assert not heard


def other_models() -> dict[str, Any]:
    """Architectures by what sets them apart, and whether our attention is theirs."""
    import transformers as t

    small = {key: value for key, value in TINY.items() if key != "tie_word_embeddings"}
    plain = {key: value for key, value in small.items() if "heads" not in key and key != "max_position_embeddings"}
    window = {"sliding_window": 24}
    gemma2 = t.Gemma2Config(**small, tie_word_embeddings=False, head_dim=16, **window, attn_logit_softcapping=5.0)
    return {
        "biases (Qwen 2)": (t.Qwen2ForCausalLM, t.Qwen2Config(**small), True),
        "a window in every layer (Mistral)": (t.MistralForCausalLM, t.MistralConfig(**small, **window), True),
        "normed queries (Qwen 3)": (t.Qwen3ForCausalLM, t.Qwen3Config(**small, head_dim=16), True),
        "rotary part of a head (Phi)": (t.PhiForCausalLM, t.PhiConfig(**small), True),
        "soft-capped scores (Gemma 2)": (t.Gemma2ForCausalLM, gemma2, False),
        "positions in the batch (dynamic)": (
            t.LlamaForCausalLM,
            t.LlamaConfig(**small, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            False,
        ),
        "no attention (Mamba)": (t.MambaForCausalLM, t.MambaConfig(**plain, state_size=4), False),
    }


@pytest.mark.parametrize("what", list(other_models()))
def test_other_architectures_share_where_they_can_and_answer_the_same(what: str, tmp_path: Path) -> None:
    import torch

    kind, config, shares = other_models()[what]
    save_tokenizer(tmp_path)
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    engine = engine_of(tmp_path)
    asked = requests((12, 3))
    expected = {one.id: engine.handle.tokenizer.decode(greedy(engine, one), skip_special_tokens=True) for one in asked}
    assert len(set(expected.values())) > 1
    assert {key: value[0] for key, value in answers(engine, asked).items()} == expected
    assert engine.handle.shares is shares


def test_kept_answers_need_no_model(tiny_model: Path, tmp_path: Path) -> None:
    def engine() -> HfEngine:
        return HfEngine(ModelHandle(str(tiny_model), "float32", ignore), cache=ResponseCache(tmp_path / "responses.sqlite"))

    asked = requests((6,))
    first = engine()
    expected = sorted(first.generate(asked), key=lambda one: one.id)
    again = engine()
    assert sorted(again.generate(asked), key=lambda one: one.id) == expected
    assert "base" not in again.handle.__dict__
    # An adapter's answers are its own, and so are those of other settings.
    tuned = again.with_adapter(make_adapter(tiny_model, tmp_path / "a", 1), "a")
    assert [one.text for one in sorted(tuned.generate(asked), key=lambda one: one.id)] != [one.text for one in expected]
    assert all(one.output_tokens <= 2 for one in again.generate(requests((2,))))


@pytest.mark.parametrize("name", ["tiny", "gemma"])
@pytest.mark.parametrize("shares", [True, False])
def test_a_constraint_binds_its_own_row_only(
    name: str, shares: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: HfEngine = request.getfixturevalue(name)
    assert engine.handle.shares
    monkeypatch.setitem(engine.handle.__dict__, "shares", shares)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
    forms = [
        Constraint("json_schema", json.dumps({**schema, "additionalProperties": False})),
        Constraint("regex", "[a-c]{3,5}!"),
        Constraint("choice", json.dumps(["red", "red wine", "blue"])),
        None,
    ]
    asked = [replace(one, constraint=forms[at % 4]) for at, one in enumerate(requests((20,)))]
    found = {one.id: one for one in engine.generate(asked)}
    free = answers(engine, requests((20,)))
    for at, one in enumerate(asked):
        text = found[one.id].text
        assert not found[one.id].truncated or at % 4 == 3
        if at % 4 == 0:
            assert 0 <= json.loads(text)["n"] <= 99
        elif at % 4 == 1:
            assert re.fullmatch("[a-c]{3,5}!", text)
        elif at % 4 == 2:
            assert text in {"red", "red wine", "blue"}
        else:
            assert text == free[one.id][0]
