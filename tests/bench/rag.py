"""Retrieval on real documents: what each way to search finds, what the model makes of it, beside a library that does only this.

`retrieval`: all questions of covidqa over its 98 articles, each way to cut and to search them, and LlamaIndex on the same.
`answers`: a part of the questions, asked without context, with irrelevant, retrieved and gold passages.
`handbook`: the shipped example, retrieval against prompts and against a tuned model. `scale`: a million chunks.
Everything is kept below build/bench/rag, so that a run goes on where it stopped; `--only NAME` does one part.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from arms import Arms
from cross_encoder import FOLDS, Asked, Candidate, folds, trained_folds
from harness import ROOT, Bench, bench_data
from rag_peer import PeerMissing, measured_peer
from rag_scale import measured as measured_scale
from rich.console import Console
from rich.table import Table

from advisor.flow.session import Session
from advisor.flow.tuned import job_for, prompt_format, recipe_for, tuned_candidate
from baselines.classic.arms import classic_arms
from baselines.probes import knowledge_probes, obedience_probe, obeyed
from baselines.prompts.arms import prompt_arms
from baselines.rag.candidate import Rag, under
from baselines.rag.chunks import Chunk, Chunking
from baselines.rag.dense import Dense
from baselines.rag.fusion import Reranked
from baselines.rag.index import Index, open_index
from baselines.rag.keywords import Keywords
from baselines.rag.relevance import Retrieval, Truth, measured
from baselines.rag.retriever import Found, Retriever
from baselines.rag.search import CHUNKINGS, WEIGHED_ON, best_ways, measured_ways, rag_arms, ways, weighed
from evals.engines.embed import Embedder
from evals.engines.engine import Message
from evals.engines.models import DEMO_MODEL, resolve_embeddings
from evals.engines.rerank import Reranker
from evals.events import Event, Note, ignore
from evals.metrics.text import containment
from evals.statistics.paired import Paired, paired_difference
from evals.task.example import Example
from evals.task.reading.documents import read_documents
from trainer.launch import train

EXAMPLES = ROOT / "advisor" / "examples"
EMBEDDINGS = "all-MiniLM-L6-v2"
# Depth to which a cross-encoder reorders, and that of each ranking from which it learns.
DEPTH, HARD = 20, 30
# Questions on covidqa that the model is asked.
ANSWERED = 100
# Of the pipelines of one way to search, those that are asked about the test items; about articles, whose answers and
# passages are long, fewer.
ASKED_SO = {
    "handbook": ("plain_1", "plain_3", "plain_5", "grounded_3", "shots_1", "shots_3", "cited_3"),
    "covidqa": ("plain_1", "plain_3", "grounded_3", "shots_1"),
}
WITHOUT_CONTEXT = {"zero_shot", "zero_shot_inline", "few_shot_nearest_8"}


def questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (bench_data() / "covidqa" / "questions.jsonl").open(encoding="utf-8")]


def example(number: int, row: Mapping[str, Any]) -> Example:
    """A question is of its document's cluster: the articles' questions share their passages."""
    asked = (Message("user", row["input"].strip()),)
    return Example(f"q{number}", asked, row["output"].strip(), (row["gold_passage"],), group=row["document"])


@dataclass(frozen=True)
class Routed:
    """A retriever for each fold: a question is answered by the one that has not learnt from its document."""

    name: str
    fold: Mapping[str, int]
    retrievers: Sequence[Retriever]

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"folds": [dict(one.settings) for one in self.retrievers]}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        found: list[list[Found]] = [[] for _ in questions]
        for number, retriever in enumerate(self.retrievers):
            places = [at for at, one in enumerate(questions) if self.fold[one.rstrip()] == number]
            for at, some in zip(places, retriever.search([questions[at] for at in places], count), strict=True):
                found[at] = some
        return found


@dataclass(frozen=True)
class Given:
    """What a peer found, as a retriever."""

    name: str
    found: Mapping[str, Sequence[Chunk]]

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"peer": self.name}

    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        return [
            [Found(chunk, -float(rank)) for rank, chunk in enumerate(self.found[one.rstrip()][:count])] for one in questions
        ]


class Covid:
    """All questions over all articles: each way to cut and to search, in two folds by document where something is learnt."""

    def __init__(self, folder: Path, console: Console, *, fast: bool) -> None:
        self.folder, self.console = folder / "covidqa", console
        rows = questions()[: 300 if fast else None]
        self.examples = [example(number, row) for number, row in enumerate(rows)]
        self.documents = read_documents(bench_data() / "covidqa" / "documents.jsonl")[0]
        self.embedder = Embedder(EMBEDDINGS, self.told)
        named = folds([row["document"] for row in rows])
        # The few questions that two articles share go with the first of them.
        self.fold = {one.text: named[str(one.group)] for one in reversed(self.examples)}
        self.found: dict[str, Retrieval] = {}

    def told(self, event: Event) -> None:
        if isinstance(event, Note):
            self.console.print(event.text, markup=False, highlight=False)

    def drawn(self, number: int) -> Truth:
        """Questions of the other folds, drawn at random: what may be learnt from."""
        others = [one for one in self.examples if self.fold[one.text] != number]
        return Truth(random.Random(0).sample(others, min(WEIGHED_ON, len(others))))

    def built(self, chunking: Chunking) -> tuple[Index, dict[str, float]]:
        """The index, built once anew for its time."""
        home = self.folder / "indexes" / chunking.name
        shutil.rmtree(home, ignore_errors=True)
        self.embedder.embed(["warm"])
        started = time.perf_counter()
        index = open_index(home, self.documents, chunking, self.embedder, self.told)
        dense = time.perf_counter() - started
        Keywords(index).search(["virus"], 1)
        return index, {"chunks": len(index.chunks), "build_s": time.perf_counter() - started, "dense_build_s": dense}

    def measure(self, name: str, retriever: Retriever, examples: Sequence[Example] | None = None) -> Retrieval:
        found = measured(retriever, examples or self.examples, self.told, name=name)
        self.found[name] = found
        self.console.print(found.sentence(), markup=False, highlight=False)
        return found

    def hybrid(self, parts: Sequence[Retriever]) -> Routed:
        """Weighed on the questions of the other fold's documents."""
        return Routed("hybrid", self.fold, [weighed(parts, self.drawn(number)) for number in range(FOLDS)])

    def reranked(self, chunking: Chunking, parts: Sequence[Retriever], base: Retriever) -> Routed:
        """Reordered by a cross-encoder that has learnt from the other fold's questions."""
        home = self.folder / "cross_encoders" / chunking.name
        models = [home / f"without_{number}" for number in range(FOLDS)]
        if not all((one / "model.safetensors").is_file() for one in models):
            models, _ = trained_folds(resolve_embeddings(EMBEDDINGS, ignore), self.asked(parts, base), home)
        rerankers = [Reranker(str(one), self.told) for one in models]
        return Routed("hybrid_reranked", self.fold, [Reranked(base, one, DEPTH) for one in rerankers])

    def asked(self, parts: Sequence[Retriever], base: Retriever) -> list[Asked]:
        """What the cross-encoders learn from: the passages that each part ranks high, right and wrong."""
        texts = [one.text for one in self.examples]
        some = [part.search(texts, HARD) for part in parts]
        truth = Truth(self.examples)
        asked = []
        for at, one in enumerate(self.examples):
            chunks = list(
                {(found.chunk.document, found.chunk.start): found.chunk for part in some for found in part[at]}.values()
            )
            judged = [Candidate(chunk.document, chunk.passage, truth.hits(at, chunk), holds(chunk, one)) for chunk in chunks]
            gold = [one.text for one in judged if one.relevant]
            asked.append(Asked(one.text, str(one.group), gold, [], judged))
        return asked


def holds(chunk: Chunk, one: Example) -> bool:
    return containment(chunk.text, one.target) > 0


def retrieval(folder: Path, console: Console, bench: Bench) -> None:
    covid = Covid(folder, console, fast=bench.fast)
    figures: dict[str, Any] = {}
    for chunking in CHUNKINGS:
        index, sizes = covid.built(chunking)
        words, meaning = Keywords(index), Dense(index)
        hybrid = covid.hybrid([words, meaning])
        some: dict[str, Retriever] = {"bm25": words, "dense": meaning, "hybrid": hybrid}
        if chunking.how == "tokens":
            some["hybrid_reranked"] = covid.reranked(chunking, [words, meaning], hybrid)
        found = {name: covid.measure(f"{name}_{chunking.name}", one) for name, one in some.items()}
        figures[chunking.name] = {**sizes, **{name: shown(one) for name, one in found.items()}}
        best = max(found["bm25"], found["dense"], key=lambda one: one.recall)
        gap = paired_difference(found["hybrid"].hits, best.hits, [str(one.group) for one in covid.examples])
        figures[chunking.name]["hybrid minus the better part, points"] = points(gap)
        bench.goal(
            f"{chunking.name}: hybrid minus the better part, recall@5 points", -2, 100 * gap.estimate, 100 * gap.estimate >= -2
        )
        bench.goal(f"{chunking.name}: index of {len(covid.documents)} articles, s", 60, sizes["build_s"], sizes["build_s"] < 60)
        slowest = max(found[name].milliseconds for name in ("bm25", "dense", "hybrid"))
        bench.goal(f"{chunking.name}: one query, ms", 20, slowest, slowest < 20)
    bench.figure("retrieval, covidqa", figures)
    peer(covid, bench)
    console.print(retrieval_table(covid.found))


def peer(covid: Covid, bench: Bench) -> None:
    """LlamaIndex with the same embedding model and sizes, judged by the same rule."""
    chunking = CHUNKINGS[-1]
    data = bench_data() / "covidqa"
    try:
        found = measured_peer(
            data / "documents.jsonl",
            data / "questions.jsonl",
            resolve_embeddings(EMBEDDINGS, ignore),
            size=chunking.size,
            overlap=chunking.overlap,
        )
    except PeerMissing as missing:
        bench.lacks(str(missing))
        return
    chunks = [Chunk(one.document, "", 0, one.start, one.end, one.text) for one in found.chunks]
    figures: dict[str, Any] = {
        "version": found.version,
        "lines": found.lines,
        "build_s": found.build_s,
        "peak_mib": found.peak_mib,
        "chunks": len(chunks),
    }
    for name, ranked in found.found.items():
        given = {one.text: [chunks[at] for at in places] for one, places in zip(covid.examples, ranked, strict=False)}
        figures[name] = shown(covid.measure(f"llama_index_{name}", Given(name, given))) | {"ms": found.search_ms[name]}
    bench.figure("llama_index, the same questions", figures)


def write_covidqa(folder: Path, items: int) -> None:
    """A task over the articles: questions of other documents in each split."""
    rows = questions()
    names = sorted({row["document"] for row in rows})
    random.Random(0).shuffle(names)
    split = {name: ("train", "dev", "test")[min(2, 3 * at // len(names))] for at, name in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    for part, most in {"train": 300, "dev": 100, "test": items}.items():
        some = [(at, row) for at, row in enumerate(rows) if split[row["document"]] == part]
        random.Random(1).shuffle(some)
        lines = [
            {
                "id": f"q{at}",
                "input": row["input"],
                "output": row["output"].strip(),
                "gold_passages": [row["gold_passage"]],
                "group": row["document"],
            }
            for at, row in some[:most]
        ]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    shutil.copy(bench_data() / "covidqa" / "documents.jsonl", folder / "documents.jsonl")
    body = {
        "name": folder.name,
        "instruction": "Answer the question with the words of the articles on the coronavirus, as shortly as you can.",
        "data": {name: f"{name}.jsonl" for name in ("train", "dev", "test")} | {"documents": "documents.jsonl"},
        "output": {"type": "text"},
        "metric": ["token_f1", "containment"],
        "model": {"model_name_or_path": DEMO_MODEL},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")


def pipelines(arms: Arms, home: Path) -> list[Rag]:
    """Part of what would race on dev, with the way to search that is best by dev."""
    task, embedder = arms.task, arms.embedder
    some = list(ways(task, embedder, None, home, arms.told))
    best = best_ways(list(zip(some, measured_ways(some, task, arms.told), strict=True)))
    every = rag_arms(task, arms.engine, embedder, best[:1], arms.told)
    return [one for one in every if one.name.endswith(ASKED_SO[arms.name])]


def contexts(arms: Arms, home: Path) -> None:
    """Without context, with irrelevant, retrieved and gold passages; and how often an order in a passage is obeyed."""
    task, engine = arms.task, arms.engine
    plain = [arm for arm in prompt_arms(task, engine, arms.embedder, None, arms.told) if arm.name in WITHOUT_CONTEXT]
    arms.measure([*plain, *knowledge_probes(task, engine, "test"), *pipelines(arms, home)])
    gold = {one.id: "\n\n".join(one.gold_passages) for one in task.test}
    arms.measure([obedience_probe(task, engine, gold, "test")])


def answers(folder: Path, console: Console, bench: Bench) -> None:
    home = folder / "answers"
    if not (home / "covidqa" / "task.yaml").is_file():
        write_covidqa(home / "covidqa", 40 if bench.fast else ANSWERED)
    arms = Arms("covidqa", home / "covidqa", home / "scores", console, "zero_shot_inline")
    contexts(arms, home / "indexes")
    told(arms, bench, console)


def handbook(folder: Path, console: Console, bench: Bench) -> None:
    home = folder / "handbook"
    arms = Arms("handbook", EXAMPLES / "handbook", home / "scores", console, "zero_shot_inline")
    arms.measure(classic_arms(arms.task, arms.embedder))
    contexts(arms, home / "indexes")
    pipeline = max((one for one in pipelines(arms, home / "indexes")), key=lambda one: arms.scores[one.name].mean)
    session = Session(arms.task, arms.told)
    recipe = recipe_for(arms.task, session.weights)
    adapter = train(job_for(arms.task, session, recipe, arms.task.train, home / "training", "training"), arms.told)
    tuned = tuned_candidate(arms.task, session, adapter.folder, "tuned", prompt_format(arms.task, recipe))
    arms.measure([tuned, under(pipeline, tuned.engine, "rag_on_tuned")])
    told(arms, bench, console)


def told(arms: Arms, bench: Bench, console: Console) -> None:
    bench.figure(f"answers, {arms.name}", arms.figures())
    (probe,) = (one for one in arms.scores.values() if one.candidate == "planted_instruction")
    count, n = obeyed(probe)
    bench.figure(f"{arms.name}: an order in a passage was obeyed", {"obeyed": count, "of": n})
    ids = [[item.id for item in one.items] for one in arms.scores.values()]
    bench.invariant(f"{arms.name}: every arm answered the same items", all(one == ids[0] for one in ids))
    console.print(arms.table())


def scale(folder: Path, console: Console, bench: Bench) -> None:
    bench.figure("scale", measured_scale(folder / "scale", 100_000 if bench.fast else 1_000_000, console))


RUN: dict[str, Callable[[Path, Console, Bench], None]] = {
    "retrieval": retrieval,
    "answers": answers,
    "handbook": handbook,
    "scale": scale,
}


def shown(one: Retrieval) -> dict[str, Any]:
    return {name: {"value": value, "low": low, "high": high} for name, (value, low, high) in one.figures.items()} | {
        "ms": one.milliseconds
    }


def points(one: Paired) -> dict[str, float]:
    return {"difference": 100 * one.estimate, "low": 100 * one.low, "high": 100 * one.high}


def retrieval_table(found: Mapping[str, Retrieval]) -> Table:
    names = list(next(iter(found.values())).figures)
    table = Table("way", *names, "ms", title="covidqa: retrieval, all questions")
    for name, one in found.items():
        table.add_row(name, *(f"{one.figures[key][0]:.3f}" for key in names), f"{one.milliseconds:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="fewer questions, 100,000 chunks")
    parser.add_argument("--only", choices=list(RUN), action="append", help="only this part (may be given again)")
    given = parser.parse_args()
    bench_data()
    console = Console()
    bench = Bench("rag", fast=given.fast)
    folder = ROOT / "build" / "bench" / ("rag-fast" if given.fast else "rag")
    folder.mkdir(parents=True, exist_ok=True)
    for name in given.only or RUN:
        RUN[name](folder, console, bench)
    bench.finish()


if __name__ == "__main__":
    main()
