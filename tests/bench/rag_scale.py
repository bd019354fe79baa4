"""A million chunks on this machine: building, searching, opening again and bringing up to date, with what each costs.

The chunks are those of covidqa's articles, embedded really, and copies of them until there are enough. A copy has some of its
words exchanged, and its vector is the chunk's plus noise. The noise is made of differences between real chunks and their
nearest neighbours, so that it lies in the directions in which real text differs (isotropic noise does not), and it is scaled
so that two copies of a chunk are as alike as a real chunk and its nearest neighbour in another article (the median cosine).
Copies go through `open_index` as documents, one after another; only the embedding model and the cutting are replaced, whose
rates are measured on the real articles. The questions are covidqa's own.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import MEBIBYTE, ROOT, Bench, bench_data, measured_in_child
from rich.console import Console

from baselines.rag.chunks import Chunk, Chunking
from baselines.rag.dense import Dense
from baselines.rag.index import Index, open_index
from baselines.rag.inverted import nearest
from evals.engines.embed import Embedder
from evals.events import Event, Note, Progress, ignore
from evals.task.reading.documents import Document, read_documents

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EMBEDDINGS = "all-MiniLM-L6-v2"
CHUNKING = Chunking("sentences", 96)
QUESTIONS, COUNT = 500, 10
CHANGED = 1000
MARK = re.compile(r" #([0-9]+)/([0-9]+): ")
SEED = 7


@dataclass(frozen=True)
class Base:
    """The real chunks: vectors, and how a copy's vector is made of them."""

    index: Index

    @cached_property
    def _near(self) -> tuple[NDArray[np.int64], float]:
        """The nearest chunk of another article to each (neighbours in one article share sentences and their title), and the
        median of their cosines."""
        import numpy as np

        articles = np.repeat(*np.array([(number, one.count) for number, one in enumerate(self.index.documents)]).T)
        found, cosines = np.empty(len(self.index.vectors), dtype=np.int64), []
        for start in range(0, len(found), 1024):
            scores = self.index.vectors[start : start + 1024] @ self.index.vectors.T
            scores[articles[start : start + 1024, None] == articles] = -1
            found[start : start + 1024] = scores.argmax(axis=1)
            cosines += scores.max(axis=1).tolist()
        return found, float(np.median(cosines))

    @property
    def alike(self) -> float:
        return self._near[1]

    def jittered(self, rows: NDArray[np.int64], copies: NDArray[np.int64]) -> NDArray[np.float32]:
        """The unit vectors of these copies. Two copies of a chunk with unit vector v are (v + s n) / |v + s n| with unit
        noises n that are at right angles in the mean, so that their cosine is 1 / (1 + s^2) = `alike`."""
        import numpy as np

        near, alike = self._near
        vectors = np.asarray(self.index.vectors)
        noise = np.zeros((len(rows), vectors.shape[1]), dtype=np.float32)
        for turn in range(4):
            picked = (_mixed(rows, copies, turn) % len(vectors)).astype(np.int64)
            sign = np.where(_mixed(rows, copies, turn + 10) % 2, 1, -1)[:, None]
            noise += sign * (vectors[picked] - vectors[near[picked]])
        noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
        made = vectors[rows] + np.float32(np.sqrt(1 / alike - 1)) * noise
        # The first copy is the chunk itself.
        made = np.where((copies == 0)[:, None], vectors[rows], made)
        unit: NDArray[np.float32] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
        return unit


def _mixed(rows: NDArray[np.int64], copies: NDArray[np.int64], turn: int) -> NDArray[np.uint64]:
    """A number for each (row, copy, turn) as if drawn by chance: SplitMix64's finaliser (Steele, Lea, Flood 2014)."""
    import numpy as np

    with np.errstate(over="ignore"):
        x = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + copies.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        x += np.uint64((turn * 1000 + SEED) * 0x2545F491)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
        return mixed


class Jittered(Embedder):
    """Knows the copies' vectors by the mark in their titles; embeds everything else really."""

    def __init__(self, base: Base) -> None:
        super().__init__(base.index.embedder.name)
        self.base = base
        self.seconds = 0.0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        started = time.perf_counter()
        marks = [MARK.search(text) for text in texts]
        if not all(marks):
            return super().embed(texts)
        rows, copies = (np.array([int(mark[group]) for mark in marks if mark]) for group in (1, 2))
        made = self.base.jittered(rows, copies)
        self.seconds += time.perf_counter() - started
        return made


@dataclass(frozen=True)
class Copied:
    """Stands for a Chunking: the chunks of a copied article, by the real ones. `document.id` is article/copy."""

    base: Base
    name: str = "copied"

    @property
    def settings(self) -> dict[str, Any]:
        return {"how": self.name, "of": self.base.index.hash}

    @cached_property
    def _articles(self) -> dict[str, range]:
        return {one.id: range(one.first, one.first + one.count) for one in self.base.index.documents}

    def split(self, document: Document, embedder: Embedder) -> Iterator[Chunk]:
        article = document.id.rpartition("/")[0]
        copy = int(document.text.partition(" ")[0])
        for position, row in enumerate(self._articles[article]):
            real = self.base.index.chunks[row]
            text = varied(real.text, row, copy)
            yield Chunk(document.id, f"{real.title} #{row}/{copy}", position, 0, len(text), text)

    def documents(self, chunks: int, changed: int = 0) -> Iterator[Document]:
        """Copies of all articles until there are `chunks` chunks; of `changed` of them, evenly spread, another copy than before.

        The text begins with the copy's number, by which it is made when it is cut.
        """
        count, at = 0, 0
        total = self.count(chunks)
        step = total // changed if changed else total + 1
        for copy in range(chunks):
            for article, rows in self._articles.items():
                if count >= chunks:
                    return
                other = at % step == 0 and at // step < changed if changed else False
                text = " ".join(self.base.index.chunks[row].text for row in rows)
                yield Document(f"{article}/{copy}", f"{copy + 1_000_000 if other else copy} {text}")
                count, at = count + len(rows), at + 1

    def count(self, chunks: int) -> int:
        """How many documents these are."""
        sizes, documents, count = [len(rows) for rows in self._articles.values()], 0, 0
        while count < chunks:
            count += sizes[documents % len(sizes)]
            documents += 1
        return documents


def varied(text: str, row: int, copy: int) -> str:
    """Every eighth word exchanged with another of the same chunk, others in each copy."""
    words = text.split(" ")
    for at in range(copy % 8, len(words), 8):
        other = (at * 7 + copy * 13 + row) % len(words)
        words[at], words[other] = words[other], words[at]
    return " ".join(words) if copy else text


class Memory:
    """The most memory of this process while it is watched, in MiB: its own (`anonymous`), and with mapped files (`all`)."""

    def __init__(self) -> None:
        self.anonymous = self.all = 0.0

    @contextmanager
    def watched(self) -> Iterator[Memory]:
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,))
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def _watch(self, done: threading.Event) -> None:
        while True:
            here = memory_mib()
            self.anonymous, self.all = max(self.anonymous, here["anonymous"]), max(self.all, here["all"])
            if done.wait(0.05):
                return


def memory_mib() -> dict[str, float]:
    """Resident memory of this process now; `all` is anonymous and file-backed together. Without /proc only the peak is known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MEBIBYTE if sys.platform == "darwin" else 1024)
        return {"anonymous": peak, "all": peak}
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return {"anonymous": found["RssAnon"], "all": found["VmRSS"]}


# What a part of a build is called, by the task whose first or last progress begins it.
PARTS = {
    "cutting the documents into passages": ("cutting and writing", "looking for what is known"),
    "embedding the passages": ("embedding", "putting vectors in order"),
    "adding the vectors to the FAISS index": ("adding", "embedding pieces of passages"),
    "exact search, to measure the approximate one": ("exact search", "choosing nprobe and writing"),
}


class Clock:
    """Seconds of each part of a build, from its events: a part lasts until the next one begins."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.notes: list[str] = []
        self._now, self._since = "cutting and writing", time.perf_counter()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)
            self._begin("training" if event.text.startswith("Training") else "opening")
        elif isinstance(event, Progress) and event.task in PARTS and event.done in (0, event.total):
            self._begin(PARTS[event.task][event.done > 0])

    def _begin(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[self._now] = self.parts.get(self._now, 0.0) + now - self._since
        self._now, self._since = part, now

    def stop(self) -> dict[str, float]:
        self._begin("")
        return {name: round(seconds, 2) for name, seconds in self.parts.items()}


def real(folder: Path) -> dict[str, Any]:
    """Index the articles themselves: what cutting and embedding really cost."""
    shutil.rmtree(folder / "real", ignore_errors=True)
    documents, problems = read_documents(bench_data() / "covidqa" / "documents.jsonl")
    assert not problems
    embedder = Embedder(EMBEDDINGS)
    embedder.embed(["warm"])
    clock = Clock()
    started = time.perf_counter()
    index = open_index(folder / "real", documents, CHUNKING, embedder, clock)
    seconds = time.perf_counter() - started
    parts = clock.stop()
    return {
        "documents": len(documents),
        "chunks": len(index.chunks),
        "seconds": round(seconds, 2),
        "parts_s": parts,
        "chunks_per_s": round(len(index.chunks) / seconds, 1),
        "nearest_neighbour_cosine": round(Base(index).alike, 3),
    }


def base(folder: Path) -> Base:
    """The real index as it lies there, without reading the articles again."""
    from baselines.rag.manifest import Manifest

    manifest = Manifest.read(folder / "real" / "manifest.json")
    return Base(Index(folder / "real", manifest, CHUNKING, Embedder(EMBEDDINGS)))


def build(folder: Path, chunks: int, changed: int) -> dict[str, Any]:
    """Build the large index, or bring it up to date after `changed` documents have changed, in this process."""
    copied = Copied(base(folder))
    embedder = Jittered(copied.base)
    _ = copied.base.alike, embedder.dimension
    clock, memory = Clock(), Memory()
    with memory.watched():
        started = time.perf_counter()
        index = open_index(folder / "large", copied.documents(chunks, changed), copied, embedder, clock)  # type: ignore[arg-type]
        indexed = time.perf_counter() - started
        settings = dict(Dense(index, clock).settings)
        seconds = time.perf_counter() - started
    return {
        "chunks": len(index.chunks),
        "documents": index.manifest.documents,
        "seconds": round(seconds, 2),
        "chunks_and_vectors_s": round(indexed, 2),
        "faiss_s": round(seconds - indexed, 2),
        "jitter_s": round(embedder.seconds, 2),
        "parts_s": clock.stop(),
        "peak_anonymous_mib": round(memory.anonymous),
        "peak_with_mapped_files_mib": round(memory.all),
        "disk_mib": {one: round(size / MEBIBYTE) for one, size in _sizes(folder / "large").items() if size > MEBIBYTE},
        "settings": settings,
        "notes": clock.notes,
    }


def _sizes(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.name if not path.name.startswith("dense-") else f"dense{path.suffix}"
            found[name] = found.get(name, 0) + path.stat().st_size
    return {**found, "all": sum(found.values())}


def search(folder: Path, chunks: int, changed: int) -> dict[str, Any]:
    """Open the index anew, as a new process does, and search it with real questions."""
    import numpy as np

    copied = Copied(base(folder))
    embedder = Jittered(copied.base)
    questions = _questions()
    vectors = embedder.encode(questions)
    before = memory_mib()
    memory = Memory()
    with memory.watched():
        started = time.perf_counter()
        index = open_index(folder / "large", copied.documents(chunks, changed), copied, embedder, ignore)  # type: ignore[arg-type]
        checked = time.perf_counter() - started
        started = time.perf_counter()
        index = Index(index.folder, index.manifest, index.chunking, embedder)
        dense = Dense(index, ignore)
        _ = dense.settings
        opened = time.perf_counter() - started
        found, seconds = [], []
        for question in questions:
            started = time.perf_counter()
            found.append(dense.search([question], COUNT)[0])
            seconds.append(time.perf_counter() - started)
    after = memory_mib()
    _, least = nearest(index.vectors, vectors, COUNT, ignore)
    shares = [sum(one.score >= last - 1e-6 for one in some) / COUNT for some, last in zip(found, least, strict=True)]
    fresh = [f"{question}?" for question in questions[:100]]
    timed = _timed(lambda question: embedder.encode([question]), fresh)
    return {
        "documents_compared_s": round(checked, 2),
        "opened_s": round(opened, 2),
        "recall_at_10": round(float(np.mean(shares)), 4),
        "recall_at_10_standard_error": round(float(np.std(shares) / np.sqrt(len(shares))), 4),
        "latency_ms": {"median": _ms(np.median(seconds)), "p95": _ms(np.quantile(seconds, 0.95))},
        "embedding_a_question_ms": _ms(np.median(timed)),
        "anonymous_mib": {"before": round(before["anonymous"]), "after": round(after["anonymous"])},
        "mapped_files_mib_after": round(after["all"] - after["anonymous"]),
    }


def _timed(function: Callable[[str], object], some: Sequence[str]) -> list[float]:
    seconds = []
    for one in some:
        started = time.perf_counter()
        function(one)
        seconds.append(time.perf_counter() - started)
    return seconds


def _ms(seconds: Any) -> float:
    return round(1000 * float(seconds), 2)


def _questions() -> list[str]:
    with (bench_data() / "covidqa" / "questions.jsonl").open(encoding="utf-8") as file:
        every = [str(json.loads(line)["input"]) for line in file]
    return list(dict.fromkeys(every))[:: max(1, len(every) // QUESTIONS)][:QUESTIONS]


def measured(folder: Path, chunks: int, console: Console) -> dict[str, Any]:
    """All figures of an index of at least `chunks` chunks below `folder`. Each step runs in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "large", ignore_errors=True)
    figures: dict[str, Any] = {}
    steps: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
    if not (folder / "real.json").is_file():
        steps.append(("real", real, (folder,)))
    else:
        figures["real"] = json.loads((folder / "real.json").read_text())
    steps += [("build", build, (folder, chunks, 0)), ("search", search, (folder, chunks, 0))]
    for name, function, arguments in steps:
        figures[name] = measured_in_child(function, *arguments).result
        console.print({name: figures[name]}, markup=False)
    (folder / "real.json").write_text(json.dumps(figures["real"]))
    changed = min(CHANGED, figures["build"]["documents"] // 10)
    figures["update"] = {"changed_documents": changed, **measured_in_child(build, folder, chunks, changed).result}
    console.print({"update": figures["update"]}, markup=False)
    figures["search_after_update"] = measured_in_child(search, folder, chunks, changed).result
    console.print({"search_after_update": figures["search_after_update"]}, markup=False)
    return figures


def kinds(folder: Path, rows: int) -> dict[str, Any]:
    """HNSW and inverted files over the first `rows` vectors of the large index: seconds to build, bytes, recall, latency."""
    import faiss
    import numpy as np

    manifest_folder = next(path for path in (folder / "large").glob("v*") if path.is_dir())
    width = base(folder).index.vectors.shape[1]
    vectors = np.array(np.memmap(manifest_folder / "vectors", dtype="<f4", mode="r").reshape(-1, width)[:rows])
    questions = Embedder(EMBEDDINGS).encode(_questions())
    _, least = nearest(vectors, questions, COUNT, ignore)
    inner, nlist = faiss.METRIC_INNER_PRODUCT, 1024

    def inverted(kind: int | None) -> Any:
        coarse = faiss.IndexFlatIP(width)
        made = (
            faiss.IndexIVFFlat(coarse, width, nlist, inner)
            if kind is None
            else faiss.IndexIVFScalarQuantizer(coarse, width, nlist, kind, inner, False)
        )
        made.cp.max_points_per_centroid = 64
        made.train(vectors)
        return made

    makers: dict[str, Callable[[], Any]] = {
        "hnsw32": lambda: faiss.IndexHNSWFlat(width, 32, inner),
        "ivf_flat": lambda: inverted(None),
        "ivf_fp16": lambda: inverted(faiss.ScalarQuantizer.QT_fp16),
        "ivf_sq8": lambda: inverted(faiss.ScalarQuantizer.QT_8bit),
    }
    found: dict[str, Any] = {}
    for name, maker in makers.items():
        started = time.perf_counter()
        index = maker()
        if name == "hnsw32":
            index.hnsw.efConstruction = 80
        index.add(vectors)
        seconds = time.perf_counter() - started
        size = len(faiss.serialize_index(index)) / MEBIBYTE
        found[name] = {"build_s": round(seconds, 1), "mib": round(size), "at": _curve(index, name, vectors, questions, least)}
    return found


def _curve(
    index: Any, name: str, vectors: NDArray[np.float32], questions: NDArray[np.float32], least: NDArray[np.float32]
) -> dict[str, Any]:
    """Recall@10 (after exact comparison of the candidates) and median milliseconds for each depth of search."""
    import numpy as np

    curve = {}
    for depth in (16, 32, 64, 128, 256):
        if name == "hnsw32":
            index.hnsw.efSearch = depth
        else:
            index.nprobe = depth // 2
        shares, seconds = [], []
        for question, last in zip(questions, least, strict=True):
            started = time.perf_counter()
            _, rows = index.search(question[None], 36)
            seconds.append(time.perf_counter() - started)
            shares.append(min(COUNT, int((vectors[rows[0][rows[0] >= 0]] @ question >= last - 1e-6).sum())) / COUNT)
        curve[str(depth)] = {"recall": round(float(np.mean(shares)), 4), "ms": _ms(np.median(seconds))}
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--fast", action="store_true", help="100,000 chunks")
    parser.add_argument("--kinds", type=int, default=0, metavar="N", help="compare HNSW and inverted files over N vectors too")
    given = parser.parse_args()
    console = Console()
    bench = Bench("rag-scale", fast=given.fast)
    bench_data()
    folder = ROOT / "build" / "bench" / "rag-scale"
    figures = measured(folder, 100_000 if given.fast else given.chunks, console)
    if given.kinds:
        figures["kinds"] = measured_in_child(kinds, folder, given.kinds).result
    for name, value in figures.items():
        bench.figure(name, value)
    found = figures["search"]
    bench.goal("recall@10 against exact search", 0.95, found["recall_at_10"], found["recall_at_10"] >= 0.95)
    bench.goal("ms a query (median)", 20, found["latency_ms"]["median"], found["latency_ms"]["median"] < 20)
    bench.finish()


if __name__ == "__main__":
    main()
