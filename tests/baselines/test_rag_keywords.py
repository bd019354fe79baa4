"""BM25 over an index's passages: the numbers of the formula, words of every script, and an index on disk that is never torn."""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.rag.chunks import Chunk
from baselines.rag.keywords import K1, LONGEST, B, Keywords, Words, best_rows, is_english
from evals.errors import AdvisorError
from evals.events import Event, Note, Progress
from evals.records import content_hash

ENGLISH = [
    "The infection of the lung is treated with oxygen, and this is the first of the steps that were taken.",
    "Mothers were infected with the virus; the receptor DC-SIGNR is one of the causes that are known.",
    "The sensor p-198A is read at 06:40, and not at 16:40, which is the time of the other one.",
    "Orders of the article SKU-4411 are sent to the store; orders of SKU-4412 and of lot 4411 are not.",
]


@dataclass
class Shelf:
    """What `Keywords` needs of an index."""

    folder: Path
    texts: Sequence[str]
    title: str = "note"

    @property
    def hash(self) -> str:
        return content_hash([self.title, list(self.texts)])

    @property
    def chunks(self) -> Sequence[Chunk]:
        return [Chunk(f"d{at}", self.title, 0, 0, len(text), text) for at, text in enumerate(self.texts)]


class Counted(Sequence[Chunk]):
    """Chunks that say which of them were read."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.all, self.read = chunks, Counter[int]()

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, at: int) -> Chunk:  # type: ignore[override]
        self.read[at] += 1
        return self.all[at]


def names(keywords: Keywords, question: str, count: int = 5) -> list[str]:
    (found,) = keywords.search([question], count)
    return [one.chunk.document for one in found]


def test_scores_are_those_of_the_formula(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, [*ENGLISH, "virus virus virus, the VIRUS!"])
    words = Words(english=True)
    rows = [words(chunk.passage) for chunk in shelf.chunks]
    mean = sum(map(len, rows)) / len(rows)

    def score(question: str, row: list[str]) -> float:
        total = 0.0
        for word in words(question):
            holding = sum(word in other for other in rows)
            if not holding:
                continue
            weight = math.log(1 + (len(rows) - holding + 0.5) / (holding + 0.5))
            times = row.count(word)
            total += weight * times / (times + K1 * (1 - B + B * len(row) / mean))
        return total

    for question in ["Which virus infects mothers?", "the time of the sensor", "sku-4411", "virus virus time"]:
        (found,) = Keywords(shelf).search([question], 10)
        expected = {chunk.document: score(question, row) for chunk, row in zip(shelf.chunks, rows, strict=True)}
        assert {one.chunk.document: one.score for one in found} == pytest.approx(
            {name: value for name, value in expected.items() if value > 0}, rel=1e-5
        )
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_titles_are_searched_with_the_text(tmp_path: Path) -> None:
    assert set(names(Keywords(Shelf(tmp_path, ENGLISH, title="Handbook")), "handbook")) == {"d0", "d1", "d2", "d3"}


def test_codes_are_found_whole_and_by_parts(tmp_path: Path) -> None:
    keywords = Keywords(Shelf(tmp_path, ENGLISH))
    for question in ["DC-SIGNR", "dc‑signr", "DCSIGNR", "What does SIGNR do?"]:
        assert names(keywords, question, 1) == ["d1"], question
    for question in ["p-198A", "P198a", "198A", "at 06:40"]:
        assert names(keywords, question, 1) == ["d2"], question
    assert names(keywords, "SKU-4411", 1) == ["d3"]
    # "0640" is a number of its own.
    assert names(keywords, "0640") == []


def test_the_whole_code_weighs_more_than_its_parts_apart(tmp_path: Path) -> None:
    texts = ["Part SKU lists 4411 of them.", "Part SKU-4411 is listed once.", "Nothing of it is known here."]
    assert names(Keywords(Shelf(tmp_path, texts)), "SKU-4411") == ["d1", "d0"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DC-SIGNR", ["dc", "signr", "dcsignr"]),
        ("p‑198A", ["p", "198a", "p198a"]),
        ("10–12", ["10", "12", "10-12"]),
        ("06:40", ["06", "40", "06:40"]),
        ("1,000.5", ["1", "000", "5", "1,000.5"]),
        ("1.2", ["1", "2", "1.2"]),
        ("C++ or C#", ["c", "c++", "or", "c", "c#"]),
        ("the U.S.", ["the", "u", "s", "us"]),
        ("a snake_case name", ["a", "snake", "case", "snake_case", "name"]),
        ("patient's don't", ["patient", "don", "t"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ﬁx co\xadoperate", ["fix", "cooperate"]),
        ("Ｆｕｌｌ", ["full"]),
        ("新冠病毒", ["新", "冠", "病", "毒", "新冠", "冠病", "病毒"]),
        ("iPhone15を買", ["iphone15", "を", "買", "を買"]),
        ("สวัส", ["ส", "วั", "ส", "สวั", "วัส"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("학교에", ["학", "교", "에", "학교", "교에"]),
        ("مُحَمَّد", ["محمد"]),
        ("\N{GRINNING FACE} … - \ud800", []),
        ("x" * 200, ["x" * LONGEST]),
    ],
)
def test_words_of(text: str, expected: list[str]) -> None:
    assert Words(english=False)(text) == expected


@given(st.text(max_size=60), st.text(max_size=60))
def test_words_of_two_lines_are_the_words_of_each(first: str, second: str) -> None:
    words = Words(english=True)
    both = words(f"{first}\n{second}")
    assert both == words(first) + words(second)
    assert all(word and not any(sign.isspace() for sign in word) and len(word) <= LONGEST for word in both)


@given(st.text(alphabet="ab1'-._:/@&,+# Z\n", max_size=40))
def test_ascii_text_has_the_words_that_it_has_beside_other_scripts(text: str) -> None:
    assert [*Words(english=False)(text), "é"] == Words(english=False)(f"{text} é")


@pytest.mark.parametrize("text", ["a-" * 200_000, "a" * 400_000, "ก" * 100_000, "e\u0301" * 200_000, "'s" * 200_000])
def test_hostile_text_costs_no_more_than_its_length(text: str) -> None:
    started = time.perf_counter()
    Words(english=True)(text)
    assert time.perf_counter() - started < 3


def test_other_scripts_are_found(tmp_path: Path) -> None:
    texts = ["新型冠状病毒的感染", "เชื้อไวรัสโคโรนา", "학교에서 배운다", "हिन्दी भाषा", "Привет, мир"]
    keywords = Keywords(Shelf(tmp_path, texts, title=""))
    for at, question in enumerate(["病毒", "ไวรัส", "학교", "हिन्दी", "МИР"]):
        assert names(keywords, question, 1) == [f"d{at}"]


def test_english_is_stemmed_and_other_languages_are_not(tmp_path: Path) -> None:
    english = Keywords(Shelf(tmp_path / "en", ENGLISH))
    assert names(english, "infections") == names(english, "infected") == names(english, "infect") != []
    german = Keywords(
        Shelf(tmp_path / "de", ["Die Infektion der Lunge wird mit Sauerstoff behandelt, und das ist der erste Schritt."])
    )
    assert names(german, "Infektionen") == []
    assert names(german, "infektion") == ["d0"]
    assert (english.settings["words"]["stemmed"], german.settings["words"]["stemmed"]) == (True, False)
    assert not is_english([])


def test_a_question_without_a_known_word_finds_nothing(tmp_path: Path) -> None:
    found = Keywords(Shelf(tmp_path, ENGLISH)).search(["xylophone quartet", "", "?!", "oxygen"], 5)
    assert [len(one) for one in found] == [0, 0, 0, 1]


@pytest.mark.parametrize("texts", [[], ["…", "— !"]])
def test_documents_without_words_find_nothing(tmp_path: Path, texts: list[str]) -> None:
    assert Keywords(Shelf(tmp_path, texts, title="")).search(["what", "is"], 5) == [[], []]
    assert not list(tmp_path.rglob("*.npy"))


def test_equals_come_in_the_order_of_the_documents(tmp_path: Path) -> None:
    keywords = Keywords(Shelf(tmp_path, ["unlike the rest", *["the same words"] * 50]))
    assert names(keywords, "same words", 3) == ["d1", "d2", "d3"]
    assert names(keywords, "same words", 0) == []


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5]), min_size=1, max_size=30), st.integers(1, 40))
def test_best_rows_are_those_of_a_full_sort(scores: list[float], count: int) -> None:
    rows, kept = best_rows(np.asarray(scores, dtype=np.float32), count)
    expected = sorted((at for at, score in enumerate(scores) if score > 0), key=lambda at: (-scores[at], at))[:count]
    assert rows.tolist() == expected
    assert kept.tolist() == [scores[at] for at in expected]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path, ENGLISH)
    assert names(Keywords(shelf), "oxygen") == ["d0"]
    return shelf


def home(shelf: Shelf) -> Path:
    (folder,) = (shelf.folder / "bm25").iterdir()
    return folder


def events_of(shelf: Shelf) -> list[Event]:
    heard: list[Event] = []
    assert names(Keywords(shelf, heard.append), "oxygen") == ["d0"]
    return heard


def test_it_is_built_once_and_then_mapped(shelf: Shelf) -> None:
    keywords = Keywords(shelf)
    assert names(keywords, "oxygen") == ["d0"]
    bases: Iterator[object] = (keywords._bm25.scores[name].base for name in ("data", "indices", "indptr"))
    assert all(isinstance(base, np.memmap) for base in bases)
    assert not [event for event in events_of(shelf) if isinstance(event, Progress)]


def test_progress_is_told_while_it_is_built(tmp_path: Path) -> None:
    ticks = [one for one in events_of(Shelf(tmp_path, ENGLISH)) if isinstance(one, Progress)]
    assert [(one.done, one.total) for one in ticks if one.unit == "chunks"][-1] == (4, 4)


def test_only_what_is_found_is_read(tmp_path: Path) -> None:
    class Wide(Shelf):
        chunks = Counted([Chunk(f"d{at}", "", 0, 0, 9, f"common word{at}") for at in range(2000)])  # type: ignore[assignment]
        hash = "fixed"  # type: ignore[assignment]

    shelf = Wide(tmp_path, [])
    names(Keywords(shelf), "common")
    shelf.chunks.read.clear()  # type: ignore[attr-defined]
    keywords = Keywords(shelf)
    _ = keywords.settings
    sampled = len(shelf.chunks.read)  # type: ignore[attr-defined]
    assert names(keywords, "word1234") == ["d1234"]
    assert sampled < 300
    assert sum(shelf.chunks.read.values()) == sampled + 1  # type: ignore[attr-defined]


def test_changed_documents_are_weighed_anew_and_the_old_weights_go(shelf: Shelf) -> None:
    before = home(shelf)
    shelf.texts = [*ENGLISH, "An oxygen mask is the best of masks."]
    assert set(names(Keywords(shelf), "oxygen")) == {"d0", "d4"}
    assert not before.exists()
    assert home(shelf).exists()


@pytest.mark.parametrize("name", ["data.csc.index.npy", "vocab.index.json", "params.index.json", "manifest.json"])
def test_a_torn_file_is_noticed_and_built_again(shelf: Shelf, name: str) -> None:
    path = home(shelf) / name
    path.write_bytes(path.read_bytes()[:-3])
    warnings = [one.text for one in events_of(shelf) if isinstance(one, Note) and one.level == "warning"]
    assert len(warnings) == 1
    assert "damaged" in warnings[0]
    assert not [one for one in events_of(shelf) if isinstance(one, Note)]


def test_a_missing_file_is_noticed_and_built_again(shelf: Shelf) -> None:
    (home(shelf) / "indices.csc.index.npy").unlink()
    assert [one for one in events_of(shelf) if isinstance(one, Note)]


class Trap:
    """Unpickling it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return (os.mkdir, (self.path, 0o700))


def test_nothing_is_unpickled(shelf: Shelf, tmp_path: Path) -> None:
    folder, sprung = home(shelf), tmp_path / "sprung"
    path = folder / "data.csc.index.npy"
    np.save(path, np.array([Trap(str(sprung))], dtype=object), allow_pickle=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sizes"][path.name] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert [one for one in events_of(shelf) if isinstance(one, Note)]
    assert not sprung.exists()
    # The trap is one.
    pickle.loads(pickle.dumps(Trap(str(sprung))))
    assert sprung.exists()


def test_what_a_killed_process_left_goes_and_what_is_in_work_stays(tmp_path: Path) -> None:
    old, new = (tmp_path / "bm25" / name for name in (".new-old", ".new-now"))
    for one in (old, new):
        one.mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    names(Keywords(Shelf(tmp_path, ENGLISH)), "oxygen")
    assert (old.exists(), new.exists()) == (False, True)


def test_two_that_build_at_once_both_answer(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.texts = [*ENGLISH, "more"]
    build = Keywords._built

    def later(self: Keywords) -> object:
        built = build(self)
        monkeypatch.setattr(Keywords, "_built", build)
        assert names(Keywords(shelf), "oxygen") == ["d0"]
        return built

    monkeypatch.setattr(Keywords, "_built", later)
    assert names(Keywords(shelf), "oxygen") == ["d0"]


def test_a_folder_that_cannot_be_written_is_an_error_with_advice(tmp_path: Path) -> None:
    (tmp_path / "bm25").write_text("in the way")
    with pytest.raises(AdvisorError, match=r"cannot be written[\s\S]*What to do"):
        names(Keywords(Shelf(tmp_path, ENGLISH)), "oxygen")


def test_settings_name_all_that_answers_depend_on(tmp_path: Path) -> None:
    one, other = (Keywords(Shelf(tmp_path, texts)).settings for texts in (ENGLISH, ENGLISH[:2]))
    assert json.loads(json.dumps(one)) == one
    assert one["index"] != other["index"]
    assert (one["k1"], one["b"], one["method"]) == (1.2, 0.75, "lucene")
