"""Search over many chunks: a FAISS inverted file that is memory-mapped, brought up to date without training it anew, and whose
loss against exact search is measured, not assumed.

Vectors are put into lists by their nearest of `nlist` centroids (k-means), and a search reads the `nprobe` lists nearest to the
question (Jégou, Douze, Schmid 2011; Douze et al. 2024, "The Faiss library"). In the lists each number is one byte (scalar
quantisation), a quarter of the vector's size; the candidates are then compared exactly.

Not HNSW: at 200,000 vectors its graph took five times as long to build and 4.5 times the bytes for the same recall at about
the same speed, has to lie in memory, and loses no chunk without being built again (`tests/bench/rag_scale.py --kinds`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.rag.chunk_store import KEY, Rows, mapped
from baselines.rag.index import Index, alone
from evals.errors import AdvisorError
from evals.events import Note, OnEvent, Ticker
from evals.records import file_hash, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECORD = "dense.json"
FILES = ("faiss", "keys", "lists")
STEM = re.compile(r"dense-[0-9a-f]{16}")
ADDED_AT_ONCE = 65_536
COMPARED_AT_ONCE = 8192
# Lists per square root of the number of vectors, and vectors that each centroid is trained on (FAISS asks for 39 at least).
LISTS = 4
TRAINED_EACH = 40
TARGET, AT = 0.95, 10
# Pieces of passages that stand for questions: so many to choose by, and as many to say what came of it.
PIECES = 256
PIECE_CHARACTERS = 80
SEED = 20240


@dataclass(frozen=True)
class Made:
    """The record of a built file. `recall` is recall@10 against exact search on pieces of passages that `nprobe` was not
    chosen by; `trained` how many vectors there were when the centroids were trained."""

    index: str
    rows: int
    trained: int
    nlist: int
    nprobe: int
    recall: float
    stem: str
    sha256: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Made | None:
        """None where there is none, or one that is torn, foreign or of another version: it is then made anew."""
        try:
            record = read_json(path)
            made = cls(
                index=str(record["index"]),
                rows=int(record["rows"]),
                trained=int(record["trained"]),
                nlist=int(record["nlist"]),
                nprobe=int(record["nprobe"]),
                recall=float(record["recall"]),
                stem=str(record["stem"]),
                sha256={name: str(record["sha256"][name]) for name in FILES},
            )
        except (AdvisorError, OSError, KeyError, TypeError, ValueError):
            return None
        return made if STEM.fullmatch(made.stem) and 0 < made.nprobe <= made.nlist else None

    def whole(self, folder: Path) -> bool:
        """Whether each file is the one that was written: FAISS parses nothing else."""
        paths = {name: folder / f"{self.stem}.{name}" for name in FILES}
        return all(path.is_file() and file_hash(path) == self.sha256[name] for name, path in paths.items())


class Inverted:
    """An opened inverted file. Only the lists that a search reads come into memory."""

    def __init__(self, folder: Path, made: Made) -> None:
        import faiss

        self.made = made
        self._faiss = _mapped(folder, made)
        # By default each search starts threads that read ahead, which cost more than the reading.
        lists: Any = faiss.downcast_InvertedLists(self._faiss.invlists)
        lists.prefetch_nthread = 0
        self._faiss.nprobe = made.nprobe

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": "ivf_sq8", "nlist": self.made.nlist, "nprobe": self.made.nprobe, "faiss": self.made.sha256["faiss"]}

    def candidates(self, vectors: NDArray[np.float32], count: int) -> list[NDArray[np.int64]]:
        """For each unit vector the rows of which the nearest are to be taken, more than `count` where there are."""
        _, found = self._faiss.search(vectors, _wanted(count))
        return [row[row >= 0] for row in found]

    def said(self) -> str:
        made = self.made
        return (
            f"Dense search over {made.rows:,} passages reads {made.nprobe:,} of {made.nlist:,} lists (FAISS IVF, one byte a number): "
            f"recall@{AT} against exact search {made.recall:.3f} on {PIECES} pieces of passages."
        )


def _wanted(count: int) -> int:
    """Rounding to a byte changes the order among near equals: twice as many, and a few."""
    return 2 * count + 16


def open_inverted(index: Index, on_event: OnEvent) -> Inverted:
    """The inverted file of an index, built or brought up to date where it is not, and what it costs as a Note.

    Centroids are kept until there are twice (or half) as many vectors as they were trained on; a vector that was there before
    stays in its list. Raises AdvisorError where it cannot be written.
    """
    folder = index.folder
    try:
        with alone(folder, on_event):
            made = Made.read(folder / RECORD)
            if made and not made.whole(folder):
                on_event(Note(f"The FAISS file in {folder} is damaged: it is built again.", level="warning"))
                made = None
            if made is None or made.index != index.hash:
                made = _make(index, made, on_event)
            found = Inverted(folder, made)
            _sweep(folder, made)
    except (OSError, RuntimeError) as error:  # FAISS raises the latter
        raise AdvisorError(
            f"the FAISS index cannot be written or read: {str(error).splitlines()[0][:300]}",
            where=str(folder),
            do="free some disk space, then run the same command again.",
        ) from error
    on_event(Note(found.said()))
    return found


def _sweep(folder: Path, made: Made) -> None:
    for path in folder.iterdir():
        if path.name.startswith((".dense-", "dense-")) and path.stem != made.stem:
            path.unlink(missing_ok=True)


def _mapped(folder: Path, made: Made) -> Any:
    import faiss

    return faiss.read_index(str(folder / f"{made.stem}.faiss"), faiss.IO_FLAG_MMAP)


def _make(index: Index, old: Made | None, on_event: OnEvent) -> Made:
    import numpy as np

    rows = len(index.chunks)
    if old and old.trained / 2 < rows < 2 * old.trained:
        # Its name stands until the end: the centroids are its own.
        before = _mapped(index.folder, old)
        trained, made, lists = old.trained, _like(before), _kept_lists(index, old)
    else:
        trained, made, lists = rows, _trained(index.vectors, on_event), np.full(rows, -1, dtype=np.int32)
    _add(made, index.vectors, lists, on_event)
    nprobe, recall = _tuned(made, index, on_event)
    return _write(index, made, lists, trained, nprobe, recall)


def _kept_lists(index: Index, old: Made) -> NDArray[np.int32]:
    """The list that each row was in before, -1 where its vector is new."""
    import numpy as np

    keys = mapped(index.folder / f"{old.stem}.keys", KEY)
    lists = mapped(index.folder / f"{old.stem}.lists", "<i4")
    at = Rows(keys).find(index.keys)
    return np.where(at >= 0, lists[at], -1).astype(np.int32)


def lists_for(rows: int) -> int:
    """The power of two below `LISTS` times the square root."""
    return int(2 ** math.floor(math.log2(LISTS * math.sqrt(rows))))


def _trained(vectors: NDArray[np.float32], on_event: OnEvent) -> Any:
    """An empty inverted file whose centroids are trained on an even sample of the vectors."""
    import faiss
    import numpy as np

    rows, width = vectors.shape
    nlist = lists_for(rows)
    sample = np.random.default_rng(SEED).choice(rows, min(rows, TRAINED_EACH * nlist), replace=False)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, nlist, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    index.cp.seed, index.cp.spherical = SEED, True
    index.cp.max_points_per_centroid = TRAINED_EACH
    index.cp.min_points_per_centroid = 1
    on_event(Note(f"Training {nlist:,} lists of a FAISS index on {len(sample):,} of {rows:,} vectors."))
    index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    return index


def _like(trained: Any) -> Any:
    """The same centroids and ranges, and no vectors. The centroids stay those of `trained`, which must outlive it."""
    import faiss

    index = faiss.IndexIVFScalarQuantizer(
        trained.quantizer, trained.d, trained.nlist, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    index.sq = trained.sq
    index.is_trained = True
    return index


def _add(index: Any, vectors: NDArray[np.float32], lists: NDArray[np.int32], on_event: OnEvent) -> None:
    """Add all vectors under their rows, each to its list; `lists` is filled in where it is -1."""
    import faiss
    import numpy as np

    ticker = Ticker(on_event, "adding the vectors to the FAISS index", len(vectors), "vectors")
    for start in range(0, len(vectors), ADDED_AT_ONCE):
        block = np.ascontiguousarray(vectors[start : start + ADDED_AT_ONCE])
        here = lists[start : start + len(block)]
        new = here < 0
        if new.any():
            here[new] = index.quantizer.search(block[new], 1)[1][:, 0]
        ids, known = np.arange(start, start + len(block)), here.astype(np.int64)
        index.add_core(len(block), faiss.swig_ptr(block), faiss.swig_ptr(ids), faiss.swig_ptr(known))
        ticker.advance(len(block))


def _tuned(faiss_index: Any, index: Index, on_event: OnEvent) -> tuple[int, float]:
    """The fewest lists by which recall@10 against exact search is `TARGET`, two standard errors of the sample below it granted,
    and the recall on as many pieces again.

    Questions are not known here. Pieces of passages stand for them, which are found less easily than whole passages (the
    inverse cloze task of Lee, Chang, Toutanova 2019).
    """
    questions = index.embedder.embed(pieces(index))
    _, least = nearest(index.vectors, questions, AT, on_event)
    half = len(questions) // 2
    nprobe = 1
    for nprobe in _ladder(faiss_index.nlist):
        each = recalls(faiss_index, index.vectors, questions[:half], least[:half], nprobe)
        if each.mean() - 2 * each.std() / math.sqrt(half) >= TARGET:
            break
    recall = float(recalls(faiss_index, index.vectors, questions[half:], least[half:], nprobe).mean())
    return nprobe, recall


def _ladder(nlist: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12 … up to all lists."""
    step = 1
    while step < nlist:
        yield step
        if step > 1 and step + step // 2 < nlist:
            yield step + step // 2
        step *= 2
    yield nlist


def pieces(index: Index) -> list[str]:
    """A piece out of each of some passages, at whole words where there are any; always the same of one index."""
    import numpy as np

    random = np.random.default_rng(SEED)
    rows = random.choice(len(index.chunks), min(2 * PIECES, len(index.chunks)), replace=False)
    return [_piece(index.chunks[int(row)].text, float(random.random())) for row in rows]


def _piece(text: str, at: float) -> str:
    start = int(at * max(0, len(text) - PIECE_CHARACTERS))
    piece = text[start : start + PIECE_CHARACTERS]
    words = piece.split()
    # The words at the ends may be cut.
    return " ".join(words[1:-1]) if len(words) > 3 else piece


def nearest(
    vectors: NDArray[np.float32], questions: NDArray[np.float32], count: int, on_event: OnEvent
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Exact search in blocks: the rows (m, count) of the highest cosines, best first, and the lowest of these cosines (m,)."""
    import numpy as np

    rows = np.zeros((len(questions), 0), dtype=np.int64)
    scores = np.zeros((len(questions), 0), dtype=np.float32)
    ticker = Ticker(on_event, "exact search, to measure the approximate one", len(vectors), "vectors")
    for start in range(0, len(vectors), COMPARED_AT_ONCE):
        block = vectors[start : start + COMPARED_AT_ONCE]
        new = questions @ block.T
        best = np.argpartition(-new, min(count, len(block)) - 1, axis=1)[:, :count]
        rows = np.hstack([rows, best + start])
        scores = np.hstack([scores, np.take_along_axis(new, best, 1)])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        ticker.advance(len(block))
    return rows, scores[:, -1]


def recalls(
    faiss_index: Any, vectors: NDArray[np.float32], questions: NDArray[np.float32], least: NDArray[np.float32], nprobe: int
) -> NDArray[np.float64]:
    """For each question the share of its `AT` nearest that are found: as many as reach the cosine of the exact search's last
    (`least`), so that it counts nothing which of several equal passages it is."""
    import numpy as np

    faiss_index.nprobe = nprobe
    _, found = faiss_index.search(questions, _wanted(AT))
    shares = []
    for question, rows, last in zip(questions, found, least, strict=True):
        cosine = vectors[rows[rows >= 0]] @ question
        shares.append(min(AT, int((cosine >= last - 1e-6).sum())) / AT)
    return np.array(shares)


def _write(index: Index, faiss_index: Any, lists: NDArray[np.int32], trained: int, nprobe: int, recall: float) -> Made:
    """Write the files, and then the record that names them. A kill in between leaves the old record in force."""
    import faiss

    folder = index.folder
    stem = f"dense-{index.hash[:16]}"
    # Under names of their own first: who has an old file open still reads that one.
    paths = {name: folder / f".{stem}.{name}" for name in FILES}
    faiss.write_index(faiss_index, str(paths["faiss"]))
    paths["keys"].write_bytes(index.keys.tobytes())
    paths["lists"].write_bytes(lists.astype("<i4").tobytes())
    hashes = {name: file_hash(path) for name, path in paths.items()}
    for name, path in paths.items():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(folder / f"{stem}.{name}")
    made = Made(index.hash, len(index.chunks), trained, faiss_index.nlist, nprobe, recall, stem, hashes)
    write_json(folder / RECORD, asdict(made))
    return made
