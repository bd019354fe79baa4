"""Leaks planted among real questions: how many are found, how many honest rows are accused, and how long it takes.

A twentieth of the training rows each is planted as an exact copy of a test row, a lightly edited one (a slip of typing, case
and punctuation, a word dropped, added or inflected) and a reworded one (two words or more replaced, and the order changed).

What a false alarm is must not be decided by the detector. Three backgrounds:
- `intents`: banking77 with the rows of half the intents as train and of the others as test. People labelled the intents, and
  questions of two intents are two items; nothing of the detector's kind was used, so both rates are honest.
- `cleaned`: banking77, all intents on both sides, without the training rows that have two in five distinct words (or more) in
  common with a test row, or a cosine of 0.85. That is looser than any lexical check; of the review, which uses the same
  cosines, it says little.
- `documents`: covidqa, questions about half of the documents as train, about the others as test, cleaned in the same way.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Bench, alternating, bench_data, skip
from planted_labels import planted_flips
from rich.console import Console

from evals.engines.embed import Embedder
from evals.engines.models import EMBEDDING_MODEL, is_here
from evals.task.checks.findings import Finding, Place, Pool
from evals.task.checks.leaks import Text, clusters, leaks, similar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Embed = Callable[[Sequence[str]], NDArray[np.float32]]

SHARE = 0.05
TIMED_ROWS = 10_000
SHOWN = 20
# Plantings of one background: a few of its rows are planted each time, and one draw says little.
ROUNDS = 4
LOOSE_OVERLAP, LOOSE_COSINE = 0.4, 0.85
GOALS = {"exact": 1.0, "edited": 0.95, "reworded": 0.70}
FALSE_ALARMS = 0.01
SECONDS_WITHOUT, SECONDS_WITH = 5.0, 60.0
NEIGHBOURS = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wqwertyuipqsdfghjkaxzvbnbj", strict=False)) | {"o": "i", "p": "o"}
FILLERS = ("please", "just", "really", "now", "still", "also", "today", "actually", "exactly", "again", "here", "maybe")
NOT_LIGHT = re.compile(r"\d|^(not|no|never|cannot|without|one|two|three)$|n['’]?t$", re.IGNORECASE)
PHRASES = {
    "how do i": "what do I do to",
    "how can i": "what can I do to",
    "how would i": "what would I do to",
    "can i": "am I able to",
    "could i": "may I",
    "can you": "could you",
    "what should i do": "what do I do now",
    "why is": "what is the reason that",
    "why was": "what is the reason that",
    "how long": "how much time",
    "where can i": "in which place can I",
    "where do i": "in which place do I",
    "is there": "do you have",
    "are there": "do you have",
    "i need to": "I have to",
    "i want to": "I would like to",
    "i would like to": "I want to",
    "i'd like to": "I want to",
    "what are": "tell me",
    "what is": "tell me",
    "what was": "tell me",
    "when did": "at which time did",
    "when was": "at which time was",
    "how does": "in what way does",
    "how did": "in what way did",
    "how many": "what number of",
}
# Words that may stand for each other in questions to a bank and about a virus, whatever stands beside them.
SYNONYMS = {
    "buy": "purchase", "purchase": "buy", "bought": "purchased", "purchased": "bought", "help": "assist",
    "receive": "get", "received": "got", "change": "modify", "changed": "modified", "fee": "charge", "fees": "charges",
    "charged": "billed", "money": "funds", "funds": "money", "stolen": "taken", "lost": "misplaced", "cancel": "revoke",
    "cancelled": "revoked", "declined": "refused", "rejected": "refused", "wrong": "incorrect", "incorrect": "wrong",
    "need": "require", "want": "wish", "verify": "confirm", "problem": "issue", "issue": "problem", "activate": "enable",
    "phone": "mobile", "arrived": "come", "arrive": "come", "working": "functioning", "work": "function", "broken": "defective",
    "using": "by means of", "find": "locate", "showing": "appearing", 
    "soon": "shortly", "payment": "transaction", "payments": "transactions", "transaction": "payment", "transactions": "payments",
    "supported": "accepted", "accepted": "supported", "allowed": "permitted", "countries": "nations", "country": "nation",
    "hello": "hi", "hi": "hello", "think": "believe", "happened": "occurred", "happen": "occur", "fast": "quickly",
    "quickly": "fast", "extra": "additional", "additional": "extra", "identity": "ID", "reason": "cause", "amount": "sum",
    "passcode": "password", "immediately": "at once", "currently": "at present", "unable": "not able", "mistake": "error",
    "twice": "two times", "automatically": "by itself", "delete": "close", "location": "place", "recently": "lately",
    "causes": "triggers", "caused": "triggered", "common": "usual", "main": "chief", "people": "persons",
    "children": "kids", "disease": "illness", "diseases": "illnesses", "infected": "contaminated", "symptoms": "signs",
    "treatment": "therapy", "treat": "cure", "study": "investigation", "purpose": "aim", "effective": "successful",
    "method": "technique", "methods": "techniques", "deaths": "fatalities", "type": "kind", "types": "kinds", "reported": "described",
    "found": "discovered", "shown": "revealed", "outbreak": "epidemic", "prevent": "avert", "increase": "raise", "reduce": "lower",
    "important": "essential", "developed": "created", "drug": "medicine", "drugs": "medicines", "risk": "danger",
    "associated": "linked", "detect": "identify", "used": "employed", "primary": "main", "percentage": "share", "example": "instance",
}  # fmt: skip
REPLACED = re.compile(r"\b(?:" + "|".join(sorted({**PHRASES, **SYNONYMS}, key=len, reverse=True)) + r")\b", re.IGNORECASE)
CLAUSE = re.compile(r"^(?P<head>.+?),? (?P<tail>(?:because|but|if|when|since|after|while)\b .+)$", re.IGNORECASE)
PLACE = re.compile(
    r"^(?P<head>\S+ \S+ .*?) (?P<tail>(?:on|in|for|from|with|at|by|during)\b(?: (?!(?:on|in|for|from|with|at|by|during|to|of)\b)\S+)+)$"
)


@dataclass(frozen=True)
class Background:
    """`train` and `test` without planted rows; `removed` are (train row, test row) pairs that were cleaned away."""

    name: str
    train: list[str]
    test: list[str]
    removed: list[tuple[str, str]]


@dataclass(frozen=True)
class Planted:
    """A row put into train, the test row that it was made from, and how: exact, edited (with the kind of edit) or reworded."""

    text: str
    source: str
    kind: str
    how: str


def slip(word: str, draw: random.Random) -> str:
    """One slip of typing at any letter: exchanged with the next one, left out, doubled, or the neighbouring key."""
    at = draw.randrange(len(word))
    kind = draw.choice(("exchange", "leave", "double", "neighbour"))
    if kind == "exchange":
        at = min(at, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == "leave":
        return word[:at] + word[at + 1 :]
    if kind == "double":
        return word[:at] + word[at] + word[at:]
    return word[:at] + NEIGHBOURS.get(word[at].lower(), "e") + word[at + 1 :]


def inflected(word: str) -> str:
    """The other number, or the other form of a verb that has an ending."""
    for ending, other in (("ing", "ed"), ("ed", "ing"), ("ss", "sses"), ("s", ""), ("y", "ies")):
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            return word.removesuffix(ending) + other
    return word + "s"


def edited(text: str, kind: str, draw: random.Random) -> str | None:
    """The text with one light edit, None where it has no word for it. Words that carry a number or a negation are left alone."""
    if kind == "case and punctuation":
        bare = re.sub(r"[?.!,]", "", text)
        return draw.choice((bare.upper(), bare.lower() + "...", bare.title() + "!"))
    parts = text.split()
    if kind == "added":
        at = draw.randrange(len(parts) + 1)
        return " ".join([*parts[:at], draw.choice(FILLERS), *parts[at:]]) if len(parts) >= 5 else None
    if kind == "dropped":
        free = [at for at, word in enumerate(parts) if not NOT_LIGHT.search(word.strip("?.!,"))]
        if len(parts) < 6 or not free:
            return None
        gone = draw.choice(free)
        return " ".join(word for at, word in enumerate(parts) if at != gone)
    free = [at for at, word in enumerate(parts) if word.isalpha() and len(word) >= 4 and not NOT_LIGHT.search(word)]
    if not free or len(parts) < 2:
        return None
    at = draw.choice(free)
    parts[at] = slip(parts[at], draw) if kind == "slip of typing" else inflected(parts[at])
    new = " ".join(parts)
    return new if new != " ".join(text.split()) else None


def reworded(text: str) -> str | None:
    """Two words or phrases of the tables or more replaced, and the order changed where there are parts to exchange."""
    count = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal count
        other = PHRASES.get(match[0].lower()) or SYNONYMS[match[0].lower()]
        count += 1
        return other

    # In one pass: what was put in is not replaced again.
    new = REPLACED.sub(replaced, " ".join(text.split()).replace("’", "'"))
    return _reordered(new) if count >= 2 else None


def _reordered(text: str) -> str:
    sentences = re.findall(r"[^.?!]+[.?!]*", text)
    if len(sentences) > 1:
        return " ".join(one.strip() for one in [*sentences[1:], sentences[0]])
    bare = text.rstrip("?.! ")
    if found := CLAUSE.match(bare) or PLACE.match(bare):
        return f"{found['tail']}, {found['head']}{text[len(bare) :]}"
    return text


def plant(background: Background, seed: int) -> list[Planted]:
    """SHARE of the training rows of each kind, each made from a test row of its own."""
    draw = random.Random(seed)
    sources = sorted(set(background.test))
    draw.shuffle(sources)
    wanted = max(1, round(SHARE * len(background.train)))
    # Few test rows (covidqa has as many as train): a third of them for each kind at the most.
    wanted = min(wanted, len(sources) // 4)
    kinds = ("case and punctuation", "slip of typing", "added", "dropped", "inflected")
    planted: list[Planted] = []
    # The rarest first: most questions can be copied, not all have words in the tables.
    for kind in ("reworded", "edited", "exact"):
        made = 0
        rest = []
        for source in sources:
            how = kinds[made % len(kinds)] if kind == "edited" else ""
            text = source if kind == "exact" else reworded(source) if kind == "reworded" else edited(source, how, draw)
            if made < wanted and text is not None:
                planted.append(Planted(text, source, kind, how))
                made += 1
            else:
                rest.append(source)
        sources = rest
    return planted


def texts_of(train: Sequence[str], test: Sequence[str]) -> list[Text]:
    pools: tuple[tuple[Pool, Sequence[str]], ...] = (("train", train), ("test", test))
    return [
        Text(Place(pool, f"{pool}-{at}", f"{pool}.jsonl", at + 1, text)) for pool, some in pools for at, text in enumerate(some)
    ]


def without_natural(name: str, train: list[str], test: list[str], embed: Embed) -> Background:
    """Train without the rows that are loosely like a test row: by their distinct words, or by cosine."""
    import numpy as np

    def bag(text: str) -> frozenset[str]:
        return frozenset(re.findall(r"\w+", text.lower()))

    vocabulary: dict[str, int] = {}
    for text in [*train, *test]:
        for word in sorted(bag(text)):
            vocabulary.setdefault(word, len(vocabulary))

    def matrix(texts: list[str]) -> NDArray[np.float32]:
        found = np.zeros((len(texts), len(vocabulary)), dtype=np.float32)
        for at, text in enumerate(texts):
            found[at, [vocabulary[word] for word in bag(text)]] = 1
        return found

    theirs, their_vectors = matrix(test), embed(test)
    kept, removed = [], []
    for start in range(0, len(train), 1024):
        block = train[start : start + 1024]
        ours = matrix(block)
        shared = ours @ theirs.T
        overlap = shared / np.maximum(1, ours.sum(1)[:, None] + theirs.sum(1)[None, :] - shared)
        cosine = embed(block) @ their_vectors.T
        both = np.maximum(overlap / LOOSE_OVERLAP, cosine / LOOSE_COSINE)
        for at, text in enumerate(block):
            best = int(both[at].argmax())
            if both[at, best] >= 1:
                removed.append((text, test[best]))
            else:
                kept.append(text)
    return Background(name, kept, test, removed)


def by_intent(rows: dict[str, list[dict[str, str]]], seed: int) -> Background:
    """Half of the intents' rows as train, the other half's as test."""
    intents = sorted({row["output"] for row in rows["train"]})
    random.Random(seed).shuffle(intents)
    half = set(intents[: len(intents) // 2])
    train = [row["input"] for row in rows["train"] if row["output"] in half]
    return Background("intents", train, [row["input"] for row in rows["test"] if row["output"] not in half], [])


def by_document(questions: list[dict[str, str]], embed: Embed, seed: int) -> Background:
    documents = sorted({row["document"] for row in questions})
    random.Random(seed).shuffle(documents)
    half = set(documents[: len(documents) // 2])
    sides: tuple[list[str], list[str]] = ([], [])
    for row in questions:
        sides[row["document"] not in half].append(row["input"])
    return without_natural("documents", list(dict.fromkeys(sides[0])), list(dict.fromkeys(sides[1])), embed)


@dataclass(frozen=True)
class Round:
    """One planting: each planted row with the name that it has, and the names that were reported by words and by the review."""

    planted: list[tuple[str, Planted]]
    findings: list[Finding]
    lexical: set[str]
    review: set[str]

    def share(self, kind: str, how: str = "", *, review: bool) -> tuple[int, int]:
        """(found, planted) of a kind, and where it is named of one way of it."""
        known = self.lexical | self.review if review else self.lexical
        names = [name for name, one in self.planted if one.kind == kind and how in {"", one.how}]
        return sum(name in known for name in names), len(names)


def planted_round(background: Background, embedder: Embedder, seed: int) -> Round:
    planted = plant(background, seed)
    texts = texts_of([*background.train, *(one.text for one in planted)], background.test)
    found = leaks(texts)
    names = [f"train-{at}" for at in range(len(background.train), len(background.train) + len(planted))]
    lexical = {one.places[0].id for one in found}
    # The review is capped for people; here every row above the threshold counts.
    return Round(list(zip(names, planted, strict=True)), found, lexical, every_similar(texts, embedder, found) - lexical)


def measure(bench: Bench, background: Background, embedder: Embedder) -> None:
    """Recall of each kind without and with the cosine review, and the rows that were accused for nothing, over all rounds."""
    rounds = [planted_round(background, embedder, seed) for seed in range(1 if bench.fast else ROUNDS)]
    body: dict[str, Any] = {
        "train rows": len(background.train),
        "test rows": len(background.test),
        "removed": len(background.removed),
        "plantings": len(rounds),
    }

    def share(kind: str, how: str, *, review: bool) -> tuple[float, int]:
        counts = [one.share(kind, how, review=review) for one in rounds]
        return sum(hits for hits, _ in counts) / max(1, sum(total for _, total in counts)), sum(total for _, total in counts)

    for kind, how in sorted({(one.kind, how) for some in rounds for _, one in some.planted for how in (one.how, "")}):
        (words_alone, total), (both, _) = (share(kind, how, review=review) for review in (False, True))
        name = f"{kind}: {how}" if how else kind
        body[name] = f"{words_alone:.1%} by words, {both:.1%} with the review (of {total})"
        if not how:
            value = both if kind == "reworded" else words_alone
            bench.goal(f"{background.name}: recall, {kind}", GOALS[kind], round(value, 4), value >= GOALS[kind])
    honest = [f"train-{at}" for at in range(len(background.train))]
    for what in ("by words", "review only"):
        known = [one.lexical if what == "by words" else one.review for one in rounds]
        accused = sum(name in some for some in known for name in honest)
        rate = accused / len(honest) / len(rounds)
        body[f"false alarms {what}"] = f"{rate:.2%} ({accused} of {len(honest) * len(rounds)})"
        bench.goal(f"{background.name}: false alarms, {what}", FALSE_ALARMS, round(rate, 4), rate <= FALSE_ALARMS)
    bench.figure(background.name, body)
    hits = [one.share("exact", review=False) for one in rounds]
    bench.invariant(f"{background.name}: every exact copy is found", all(found == total for found, total in hits))
    _show_round(background, rounds[0])


def _show_round(background: Background, first: Round) -> None:
    """For a reader: honest rows that were accused, light edits that were missed, and what was cleaned away."""
    console = Console()
    accused = [one for one in first.findings if int(one.places[0].id.split("-")[1]) < len(background.train)]
    show(console, f"{background.name}: honest rows that were accused by their words", accused[:SHOWN])
    missed = [one for name, one in first.planted if name not in first.lexical and one.kind == "edited"]
    lines = [f"  {one.how}: {one.source.strip()} → {one.text.strip()}" for one in missed[:SHOWN]]
    title = f"{background.name}: light edits that were missed ({len(missed)})"
    console.print(title, *lines, sep="\n", markup=False, highlight=False)
    if background.removed:
        some_removed = random.Random(0).sample(background.removed, min(10, len(background.removed)))
        lines = [f"  {one.strip()} | {other.strip()}" for one, other in some_removed]
        title = f"{background.name}: {len(background.removed)} natural near-duplicates were removed first, such as"
        console.print(title, *lines, sep="\n", markup=False, highlight=False)


def every_similar(texts: list[Text], embedder: Embedder, found: list[Finding]) -> set[str]:
    """Ids of all rows that the review would list if it were not capped: it is asked for what is left until nothing is."""
    known = list(found)
    while new := [one for one in similar(texts, embedder.encode, pieces=embedder, reported=known) if one.places]:
        known += new
    return {one.places[0].id for one in known[len(found) :]}


def show(console: Console, title: str, findings: Sequence[Finding]) -> None:
    console.print(f"{title} ({len(findings)} shown)", markup=False, highlight=False)
    for one in findings:
        places = " | ".join(" ".join(place.text.split())[:160] for place in one.places)
        console.print(f"  {one.check} {one.value or 0:.2f}: {places}", markup=False, highlight=False)


def timed(bench: Bench, rows: dict[str, list[dict[str, str]]], embedder: Embedder) -> None:
    """Seconds for banking77 as it is, 7 parts train and 3 parts test, and a look at what is found in it."""
    count = TIMED_ROWS // (10 if bench.fast else 1)
    train = [row["input"] for row in rows["train"]][:: 10 if bench.fast else 1][: count * 7 // 10]
    test = [row["input"] for row in rows["test"]][:: 10 if bench.fast else 1][: count * 3 // 10]
    texts = texts_of(train, test)
    found = leaks(texts)
    seconds = alternating({"leaks": lambda: leaks(texts), "clusters": lambda: clusters([*train, *test])}, 3)
    lexical = sum(min(some) for some in seconds.values())
    embedder.encode(["a first text loads the model"])
    started = time.perf_counter()
    review = similar(texts, embedder.encode, pieces=embedder, reported=found)
    embedding = time.perf_counter() - started
    kinds = {check: sum(one.check == check for one in found) for check in sorted({one.check for one in found})}
    groups = clusters([*train, *test])
    bench.figure(
        "as it is",
        {
            "rows": len(texts),
            "leaks_seconds": round(min(seconds["leaks"]), 2),
            "clusters_seconds": round(min(seconds["clusters"]), 2),
            "similar_seconds": round(embedding, 1),
            "clusters": len(set(groups)),
            "rows in the largest cluster": max(groups.count(number) for number in set(groups)),
            "train rows reported": len(found),
            **kinds,
            "review": sum(bool(one.places) for one in review),
            "review not shown": int(sum(one.value or 0 for one in review if not one.places)),
        },
    )
    bench.goal("seconds by words (leaks and clusters)", SECONDS_WITHOUT, round(lexical, 2), lexical <= SECONDS_WITHOUT)
    total = lexical + embedding
    bench.goal("seconds with embedding", SECONDS_WITH, round(total, 1), total <= SECONDS_WITH)
    console = Console()
    show(console, "banking77 as it is: findings drawn at random", random.Random(0).sample(found, min(SHOWN, len(found))))
    show(console, "banking77 as it is: the last of the review", [one for one in review if one.places][-SHOWN:])


def whole_check(bench: Bench, rows: dict[str, list[dict[str, str]]]) -> None:
    """Seconds of `advisor check` as a user runs it, a process each, on a task of 10,000 rows that it splits itself."""
    count = TIMED_ROWS // (10 if bench.fast else 1)
    some = [*rows["train"], *rows["test"]][:count]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        (folder / "task.yaml").write_text("data: {train: train.jsonl}\nmodel: {model_name_or_path: smollm2-135m-instruct}\n")
        # Compiled once, as it is installed.
        subprocess.run([sys.executable, "-m", "advisor", "check", "triage", "--no-embeddings"], capture_output=True, check=True)
        command = [sys.executable, "-m", "advisor", "check", name, "--json", "--runs-dir", f"{name}/runs"]
        for what, more, limit in (
            ("without embedding", ["--no-embeddings"], SECONDS_WITHOUT),
            ("with embedding", [], SECONDS_WITH),
        ):
            started = time.perf_counter()
            done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - started
            bench.figure(
                f"advisor check, {count} rows, {what}", {"wall_seconds": seconds, **json.loads(done.stdout)["seconds"]}
            )
            bench.goal(f"advisor check of {count} rows {what} (seconds)", limit, round(seconds, 2), seconds <= limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    fast = parser.parse_args().fast
    folder = bench_data()
    if not all((folder / name).is_dir() for name in ("banking77", "covidqa")):
        skip("banking77 and covidqa are not in the data folder")
    if not is_here(EMBEDDING_MODEL):
        skip(f"the embedding model {EMBEDDING_MODEL} is not on this machine")

    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / name).open(encoding="utf-8")]

    bench = Bench("intake", fast=fast)
    embedder = Embedder(EMBEDDING_MODEL)
    banking = {split: rows(f"banking77/{split}.jsonl") for split in ("train", "test")}
    whole_check(bench, banking)
    timed(bench, banking, embedder)
    if fast:
        banking = {split: some[::5] for split, some in banking.items()}
    measure(bench, by_intent(banking, seed=0), embedder)
    inputs = {split: [row["input"] for row in some] for split, some in banking.items()}
    measure(bench, without_natural("cleaned", inputs["train"], inputs["test"], embedder.encode), embedder)
    questions = rows("covidqa/questions.jsonl")[:: 4 if fast else 1]
    measure(bench, by_document(questions, embedder.encode, seed=0), embedder)
    planted_flips(bench, fast)
    bench.finish()


if __name__ == "__main__":
    main()
