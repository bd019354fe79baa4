"""LlamaIndex over the same documents, questions and embedding model, in a process of its own: what `rag.py` stands beside.

As a script it runs in an environment that has `llama-index-core`, `llama-index-embeddings-huggingface`,
`llama-index-retrievers-bm25`, `llama-index-vector-stores-faiss` and `faiss-cpu`, needs nothing of this project, reaches no
network and no language model, and prints one JSON object. `measured_peer` starts it from the bench and reads that. Whether a
passage is relevant is not decided here: chunks come back with their places, so that one rule scores both sides.

What is compared is what LlamaIndex's own pages show (`SentenceSplitter`, `VectorStoreIndex` over FAISS, `BM25Retriever`,
`QueryFusionRetriever` with reciprocal rank fusion), with sizes counted by the embedding model's tokenizer and with inner
products: with the `IndexFlatL2` of those pages distances are taken for similarities, and the fusion reads that list upside down.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

NEEDED = (
    "llama_index.core",
    "llama_index.embeddings.huggingface",
    "llama_index.retrievers.bm25",
    "llama_index.vector_stores.faiss",
)
# Names of an interpreter with those packages; without it the bench's own is tried.
PEER = "ADVISOR_BENCH_LLAMA_INDEX"
RETRIEVERS = ("dense", "bm25", "hybrid")
# Questions before the timed ones: a first search loads what later ones find loaded.
WARM = 3


# What a user writes, and all of it: these lines run, and these lines are counted.
def configured(embeddings: str) -> None:
    from llama_index.core import Settings
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    Settings.llm = None
    Settings.embed_model = HuggingFaceEmbedding(embeddings)


def pipeline(documents: str, size: int, overlap: int, count: int) -> tuple[Any, Any, Any, Any]:
    import json

    import faiss
    from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.retrievers import QueryFusionRetriever
    from llama_index.retrievers.bm25 import BM25Retriever
    from llama_index.vector_stores.faiss import FaissVectorStore

    with open(documents, encoding="utf-8") as lines:
        read = [Document(text=row["text"], id_=row["id"]) for row in map(json.loads, lines)]
    tokens = Settings.embed_model._model.tokenizer.tokenize
    nodes = SentenceSplitter(chunk_size=size, chunk_overlap=overlap, tokenizer=tokens).get_nodes_from_documents(read)
    store = FaissVectorStore(faiss.IndexFlatIP(len(Settings.embed_model.get_text_embedding("a"))))
    index = VectorStoreIndex(nodes, storage_context=StorageContext.from_defaults(vector_store=store))
    dense = index.as_retriever(similarity_top_k=count)
    words = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=count)
    both = QueryFusionRetriever(
        [dense, words], mode="reciprocal_rerank", similarity_top_k=count, num_queries=1, use_async=False
    )
    return nodes, dense, words, both


class PeerChunk(NamedTuple):
    """`document`'s characters from `start` to `end`; -1 and -1 where LlamaIndex could not say where its text stands."""

    document: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Peer:
    """What LlamaIndex did. `found[name][q]` are the chunks of question q, best first, as positions in `chunks`; names are those
    of `RETRIEVERS`. `load_s`: imports and weights; `build_s`: reading, chunks, vectors, both indexes. `search_ms`: median of one
    question at a time, its embedding included. `lines`: of code that a user writes for all three."""

    version: str
    lines: int
    load_s: float
    build_s: float
    search_ms: Mapping[str, float]
    peak_mib: float
    chunks: Sequence[PeerChunk]
    found: Mapping[str, Sequence[Sequence[int]]]


class PeerMissing(Exception):
    """The peer cannot be run here, and why."""


def measured_peer(
    documents: Path, questions: Path, embeddings: Path, *, size: int, overlap: int, count: int = 20, limit_s: float = 900
) -> Peer:
    """Run the peer in its own process, one question of `questions` (JSON Lines with `input`) after the other.

    `embeddings` is the folder of a sentence-transformers model; `size` and `overlap` are in its tokens. Raises `PeerMissing` where
    the packages are not there, RuntimeError where it failed.
    """
    python = os.environ.get(PEER) or sys.executable
    numbers = [f"--{name}={value}" for name, value in (("size", size), ("overlap", overlap), ("count", count))]
    command = [python, str(Path(__file__).resolve()), str(documents), str(questions), str(embeddings), *numbers]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=limit_s, check=False)
    except OSError as error:
        raise PeerMissing(f"LlamaIndex: {PEER} names {python}, which does not start ({error})") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the peer was not done after {limit_s:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"the peer ended with {done.returncode}:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    if "missing" in told:
        raise PeerMissing(told["missing"])
    return Peer(**{**told, "chunks": [PeerChunk(*one) for one in told["chunks"]]})


def code_lines() -> int:
    """Lines of the two functions that are neither empty nor their first line: what a user's script would hold."""
    bodies = [inspect.getsource(one).splitlines()[1:] for one in (configured, pipeline)]
    return sum(bool(line.strip()) and not line.strip().startswith("return ") for body in bodies for line in body)


def lacking() -> str:
    """The packages that are not importable, as words; empty where all are."""
    absent = [name for name in NEEDED if not _there(name)]
    return f"LlamaIndex: not importable by {sys.executable}: {', '.join(absent)}; name another with {PEER}" if absent else ""


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def run(documents: str, questions: list[str], embeddings: str, *, size: int, overlap: int, count: int) -> dict[str, Any]:
    """What `Peer` holds, as JSON."""
    started = time.perf_counter()
    configured(embeddings)
    _imported()
    loaded = time.perf_counter()
    nodes, *retrievers = pipeline(documents, size, overlap, count)
    built = time.perf_counter()
    numbers = {node.node_id: number for number, node in enumerate(nodes)}
    found, search_ms = {}, {}
    for name, retriever in zip(RETRIEVERS, retrievers, strict=True):
        found[name], search_ms[name] = _searched(retriever, questions, numbers)
    return {
        "version": version("llama-index-core"),
        "lines": code_lines(),
        "load_s": loaded - started,
        "build_s": built - loaded,
        "search_ms": search_ms,
        "peak_mib": peak_mib(),
        "chunks": [_placed(node) for node in nodes],
        "found": found,
    }


def _imported() -> None:
    """So that building is not charged with what Python imports for it."""
    import faiss  # noqa: F401
    import llama_index.core.retrievers
    import llama_index.retrievers.bm25
    import llama_index.vector_stores.faiss  # noqa: F401


def _searched(retriever: Any, questions: list[str], numbers: Mapping[str, int]) -> tuple[list[list[int]], float]:
    for question in questions[:WARM]:
        retriever.retrieve(question)
    found, seconds = [], []
    for question in questions:
        started = time.perf_counter()
        nodes = retriever.retrieve(question)
        seconds.append(time.perf_counter() - started)
        found.append([numbers[one.node.node_id] for one in nodes])
    return found, 1000 * median(seconds)


def _placed(node: Any) -> PeerChunk:
    start, end = node.start_char_idx, node.end_char_idx
    placed = start is not None and end is not None
    return PeerChunk(node.ref_doc_id, start if placed else -1, end if placed else -1, node.text)


def peak_mib() -> float:
    """As `harness.peak_memory_mib`, which this process cannot import. 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("documents", help="JSON Lines with `id` and `text`")
    parser.add_argument("questions", help="JSON Lines with `input`")
    parser.add_argument("embeddings", help="folder of a sentence-transformers model")
    parser.add_argument("--size", type=int, default=192, help="tokens of a chunk")
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument("--count", type=int, default=20, help="chunks per question")
    given = parser.parse_args()
    if missing := lacking():
        json.dump({"missing": missing}, sys.stdout)
        return
    # Before anything is imported that reads it: neither the Hub nor a model's API is asked.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    with open(given.questions, encoding="utf-8") as lines:
        questions = [json.loads(line)["input"] for line in lines]
    # LlamaIndex prints; the answer on standard output is ours alone.
    with redirect_stdout(sys.stderr):
        told = run(given.documents, questions, given.embeddings, size=given.size, overlap=given.overlap, count=given.count)
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
