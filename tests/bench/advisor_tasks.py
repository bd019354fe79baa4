"""The tasks of the advisor's benchmark: shipped, real, and planted ones whose right answer is known by construction.

Each is a folder with a task file, whose `dev` is the population that resamples are drawn from. `TASKS` says how each is made and
what is known of it beforehand; what is best is measured.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from advisor_measure import Measured
from advisor_resample import Circumstances, with_equal_arms, without_documents
from harness import ROOT, bench_data

from evals.engines.models import DEMO_MODEL
from evals.metrics.text import normalise
from evals.task.spec import PricesSpec, TrafficSpec

Row = dict[str, Any]
EXAMPLES = ROOT / "advisor" / "examples"
POOL = 120
TEST = 8


@dataclass(frozen=True)
class Known:
    """A task, and what its construction says. `right` are actions that are right by construction (empty: what is measured to be
    best); `cause` is the planted cause of what is missing; `curve`: trained on subsets too; `shares`: another task's measurements
    serve, since only what the task file says beside the data differs (`given`), or something is `changed` in what was measured.
    `nothing_helps`: who is ahead of a blind guess in the population is so by luck, and a right action gives nothing away."""

    write: Callable[[Path], None]
    right: frozenset[str] = frozenset()
    cause: str = ""
    curve: bool = False
    shares: str = ""
    given: Circumstances = field(default_factory=Circumstances)
    changed: Callable[[Measured], Measured] | None = None
    nothing_helps: bool = False


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(folder: Path, train: Sequence[Row], pool: Sequence[Row], test: Sequence[Row], **spec: Any) -> None:
    """No input of one split stands in another: a task with a leak is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for name, some in {"dev": pool, "test": test, "train": train}.items():
        kept = [row for row in some if normalise(row["input"]) not in seen]
        seen |= {normalise(row["input"]) for row in kept}
        numbered = [{**row, "id": f"{name}-{at}"} for at, row in enumerate(kept)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered), encoding="utf-8")
    body = {
        "name": folder.name,
        "model": {"model_name_or_path": DEMO_MODEL},
        "optimise": {"requests": 0},
        # Replay is against forgetting, which is not measured here.
        "train": {"replay_share": 0.0},
        **spec,
        "data": {**{name: f"{name}.jsonl" for name in ("train", "dev", "test")}, **spec.get("data", {})},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")


def shipped(name: str, train: int | None = None) -> Callable[[Path], None]:
    """A shipped example: its dev and test are the population."""

    def make(folder: Path) -> None:
        source = EXAMPLES / name
        parts = {part: rows_of(source / f"{part}.jsonl") for part in ("train", "dev", "test")}
        pooled = [*parts["dev"], *parts["test"]]
        random.Random(0).shuffle(pooled)
        body = yaml.safe_load((source / "task.yaml").read_text(encoding="utf-8"))
        data = {}
        for extra in ("documents", "ticket.schema.json", "instruction.md"):
            if (source / extra).is_dir():
                shutil.copytree(source / extra, folder / extra, dirs_exist_ok=True)
                data = {"documents": extra}
            elif (source / extra).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / extra, folder / extra)
        kept = {key: body[key] for key in ("instruction", "output", "metric", "gate", "prices", "traffic") if key in body}
        write(folder, parts["train"][:train], pooled[TEST : POOL + TEST], pooled[:TEST], data=data, **kept)

    return make


def banking(labels: int | None, train: int, *, shuffled: bool = False) -> Callable[[Path], None]:
    """Intents of customers of a bank. `shuffled`: the training rows have each other's labels, so that they teach nothing."""

    def make(folder: Path) -> None:
        source, asked = (rows_of(bench_data() / "banking77" / f"{part}.jsonl") for part in ("train", "test"))
        names = sorted({row["output"] for row in source})
        if labels:
            names = sorted(random.Random(0).sample(names, labels))
        source, asked = ([row for row in some if row["output"] in names] for some in (source, asked))
        random.Random(0).shuffle(source)
        random.Random(1).shuffle(asked)
        if shuffled:
            given = [row["output"] for row in source]
            random.Random(2).shuffle(given)
            source = [{**row, "output": label} for row, label in zip(source, given, strict=True)]
        # Trained weights are asked with the first paragraph: the list of names is for those that were not.
        instruction = "Name the intent of the customer's message.\n\nAnswer with one of these names only:\n" + "\n".join(names)
        spec = {"instruction": instruction, "output": {"type": "label", "labels": names}}
        write(folder, source[:train], asked[TEST : POOL + TEST], asked[:TEST], **spec)

    return make


def restaurant(folder: Path) -> None:
    source, asked = (rows_of(bench_data() / "restaurant8k" / f"{part}.jsonl") for part in ("train", "test"))
    random.Random(0).shuffle(source)
    random.Random(1).shuffle(asked)
    instruction = (
        "Extract what the customer says about a restaurant booking, word for word, as one JSON object. Its keys, each only where it "
        "is said: date, time, people, first_name, last_name. Answer {} where nothing of it is said."
    )
    write(
        folder,
        source[:400],
        asked[TEST : POOL + TEST],
        asked[:TEST],
        instruction=instruction,
        output={"type": "json"},
        metric="json_fields",
    )


def covid(folder: Path) -> None:
    """Questions over ten articles, with the passage that holds the answer."""
    questions = rows_of(bench_data() / "covidqa" / "questions.jsonl")
    count: dict[str, int] = {}
    for row in questions:
        count[row["document"]] = count.get(row["document"], 0) + 1
    chosen = sorted(count, key=lambda name: -count[name])[:10]
    some = [
        {"input": row["input"], "output": row["output"], "gold_passages": [row["gold_passage"]]}
        for row in questions
        if row["document"] in chosen
    ]
    random.Random(0).shuffle(some)
    documents = [row for row in rows_of(bench_data() / "covidqa" / "documents.jsonl") if row["id"] in chosen]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")
    spec = {"instruction": "Answer the question in a few words.", "output": {"type": "text"}, "metric": "token_f1"}
    write(folder, some[100:300], some[8:100], some[:8], data={"documents": "documents.jsonl"}, **spec)


CITIES = ("Lyon", "Porto", "Turin", "Ghent", "Malmo", "Cork", "Graz", "Brno", "Split", "Tartu", "Izmir", "Varna")
GOODS = ("chairs", "lamps", "crates", "pumps", "tiles", "ropes", "doors", "cables", "drums", "stoves")
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "grey", "brown")
NAMES = ("Ana", "Boris", "Chloe", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Karin", "Luca")


def _order(chance: random.Random) -> Row:
    number, count = chance.randrange(1000, 9999), chance.randrange(2, 90)
    city, goods, name = chance.choice(CITIES), chance.choice(GOODS), chance.choice(NAMES)
    ways = (
        f"{name} ordered {count} {goods} for {city}, order {number}.",
        f"Order {number}: send {count} {goods} to {city}, attention {name}.",
        f"Please ship {count} {goods} to {name} in {city} (order no. {number}).",
    )
    return {"input": chance.choice(ways), "number": number, "count": count, "city": city, "goods": goods, "name": name}


def scrambled_form(*, documents: bool = False) -> Callable[[Path], None]:
    """All facts stand in the input; the house notation is told nowhere but in the rows. `documents` tell of other things."""

    def make(folder: Path) -> None:
        chance = random.Random(2)
        made = [_order(chance) for _ in range(420)]
        rows = [
            {"input": one["input"], "output": f"{one['city'].upper()}#{one['count']}x{one['goods']}@{one['number']}"}
            for one in made
        ]
        data = _ledgers(folder, range(300), _painted()) if documents else {}
        spec = {"instruction": "Rewrite the order in our house notation.", "output": {"type": "text"}, "metric": "exact_match"}
        write(folder, rows[:280], rows[280:400], rows[400:408], data=data, **spec)

    return make


def plain_form(folder: Path) -> None:
    """What is asked stands in the input, and one bare word is wanted, which is told nowhere: a sentence that holds it is not it."""
    chance = random.Random(7)
    made = [_order(chance) for _ in range(420)]
    asked = {"city": "To which city does it go?", "goods": "What is sent?", "name": "Whose order is it?"}
    rows = []
    for one in made:
        key = chance.choice(list(asked))
        rows.append({"input": f"{one['input']} {asked[key]}", "output": one[key]})
    spec = {"instruction": "Answer the question.", "output": {"type": "text"}, "metric": "exact_match"}
    write(folder, rows[:280], rows[280:400], rows[400:408], **spec)


def style(folder: Path) -> None:
    """The answer is the same substance in the house's manner, which only the rows show."""
    chance = random.Random(3)
    made = [_order(chance) for _ in range(420)]
    rows = [
        {
            "input": f"Confirm to the customer: {one['input']}",
            "output": f"Ahoy {one['name']}! Your {one['count']} {one['goods']} set sail for {one['city']}. Fair winds, the Harbour Desk",
        }
        for one in made
    ]
    spec = {"instruction": "Write our confirmation.", "output": {"type": "text"}, "metric": "token_f1"}
    write(folder, rows[:280], rows[280:400], rows[400:408], **spec)


def _thing(at: int) -> str:
    first = (
        "anvil",
        "bucket",
        "candle",
        "drum",
        "easel",
        "funnel",
        "garnet",
        "hammer",
        "inkwell",
        "jacket",
        "kettle",
        "ladder",
    )
    return f"{first[at % len(first)]} {100 + at}"


def _painted() -> dict[int, tuple[str, str]]:
    """What was made up of each thing: its colour and its city."""
    chance = random.Random(4)
    return {at: (chance.choice(COLOURS), chance.choice(CITIES)) for at in range(700)}


def _sentence(at: int, painted: dict[int, tuple[str, str]]) -> str:
    """The thing, which no other sentence names, stands in the middle: no other shares half of the sentence in one run, by which
    search would be thought to have found it."""
    colour, city = painted[at]
    chance = random.Random(at)
    with_it = f"{chance.randrange(10, 90)} {chance.choice(GOODS)}"
    return f"{chance.choice(NAMES)} sent the {_thing(at)}, {colour}, to {city} with {with_it}."


def _ledgers(folder: Path, told: Sequence[int], painted: dict[int, tuple[str, str]]) -> dict[str, str]:
    """Documents that tell of these things, two a page; what the task file says of them."""
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(told), 2)):
        told_here = (_sentence(at, painted) for at in told[first : first + 2])
        text = f"# Ledger {number}\n\n" + "\n\n".join(told_here) + "\n"
        (folder / "documents" / f"ledger-{number:03}.md").write_text(text, encoding="utf-8")
    return {"documents": "documents"}


def facts(documents: str) -> Callable[[Path], None]:
    """Made-up facts that no training row tells of those that are asked about. `documents`: "all", "none" (no documents), or
    "broken" (those that tell of other things)."""

    def make(folder: Path) -> None:
        painted = _painted()

        def row(at: int) -> Row:
            kind = at % 2
            question = f"Which colour has the {_thing(at)}?" if kind else f"Where was the {_thing(at)} sent?"
            found = {"input": question, "output": painted[at][0 if kind else 1]}
            return found if documents == "none" else {**found, "gold_passages": [_sentence(at, painted)]}

        told = {"all": range(300), "broken": range(300, 700), "none": range(0)}[documents]
        data = _ledgers(folder, told, painted) if told else {}
        order = list(range(300))
        random.Random(5).shuffle(order)
        rows = [row(at) for at in order]
        # The model answers in sentences, which are no exact match, and a sentence of a document is no answer.
        spec = {"instruction": "Answer with one word.", "output": {"type": "text"}, "metric": "token_f1"}
        write(folder, rows[:150], rows[150:270], rows[270:278], data=data, **spec)

    return make


def noise(folder: Path) -> None:
    """Labels drawn at random: nothing can be learnt."""
    chance = random.Random(6)
    rows = [{"input": _order(chance)["input"], "output": chance.choice(("accept", "hold", "refuse"))} for _ in range(420)]
    labels = ["accept", "hold", "refuse"]
    spec = {"instruction": "Decide: accept, hold or refuse.", "output": {"type": "label", "labels": labels}}
    write(folder, rows[:280], rows[280:400], rows[400:408], **spec)


# 60 requests in all, and a training that costs about 0.2: if it made each of them right, that were worth 0.12.
LOW = Circumstances(PricesSpec(gpu_hour=2.0, right_answer=0.002), TrafficSpec(requests_per_month=10, months=6))

TASKS: dict[str, Known] = {
    # A notation that nobody is told cannot be read tolerantly: what is missing is shown by demonstrations alone.
    "scrambled_form": Known(scrambled_form(), cause="behaviour"),
    "plain_form": Known(plain_form, cause="format"),
    "noise": Known(noise, frozenset({"collect_data", "no_llm"}), nothing_helps=True),
    "invented_facts": Known(facts("all"), frozenset({"rag", "no_llm", "rag_on_tuned"}), cause="knowledge"),
    "style": Known(style, cause="behaviour"),
    "broken_retriever": Known(facts("broken"), cause="retrieval"),
    "capitals": Known(shipped("capitals")),
    "twelve_rows": Known(shipped("triage", 12)),
    "triage": Known(shipped("triage")),
    # A made-up company, of which the documents alone tell.
    "handbook": Known(shipped("handbook"), frozenset({"rag", "rag_on_tuned"}), cause="knowledge"),
    "banking12": Known(banking(12, 400)),
    "restaurant8k": Known(restaurant),
    "facts_removed": Known(facts("none"), frozenset({"collect_data", "no_llm"}), nothing_helps=True),
    "covidqa": Known(covid),
    "banking77": Known(banking(None, 1600), curve=True),
    # Unseen variants of tasks above, beside `facts_removed`; names are changed for every task, which asks no model.
    "useless_documents": Known(scrambled_form(documents=True), cause="behaviour"),
    "labels_shuffled": Known(banking(12, 300, shuffled=True)),
    # The same answers, other circumstances: a training of some minutes that ten requests a month never pay back.
    "low_traffic": Known(shipped("triage"), shares="triage", given=LOW),
    "equal_arms": Known(banking(12, 400), shares="banking12", changed=with_equal_arms),
    "handbook_without_documents": Known(shipped("handbook"), shares="handbook", changed=without_documents),
}
