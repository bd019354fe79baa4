"""Chunks are parts of their documents, literally: together they lose nothing, and none is longer than it may be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.rag import chunks as limits
from baselines.rag.chunks import Chunk, Chunking, around
from baselines.rag.outline import headings, sections
from baselines.rag.token_places import LONGEST_TOKEN, TokenPlaces
from evals.engines.embed import Embedder
from evals.task.reading.documents import Document

TOKEN = re.compile(r"[^\W_]{1,4}|[^\w\s]|_")


class Words:
    """An embedder that reads words in pieces of four letters, a run of more than `unknown` characters as one token."""

    def __init__(self, window: int = 1000, unknown: int = LONGEST_TOKEN) -> None:
        self.window = window
        self.unknown = unknown
        self.longest = 0

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        self.longest = max(self.longest, len(text))
        found = []
        for run in re.finditer(r"\S+", text):
            if len(run[0]) > self.unknown:
                found.append(run.span())
            else:
                found += [(run.start() + one.start(), run.start() + one.end()) for one in TOKEN.finditer(run[0])]
        return found


def embedder(window: int = 1000, unknown: int = LONGEST_TOKEN) -> Embedder:
    return cast(Embedder, Words(window, unknown))


def cut(text: str, chunking: Chunking, name: str = "d.md") -> list[Chunk]:
    return list(chunking.split(Document(name, text), embedder()))


def tokens(text: str) -> int:
    return len(embedder().token_spans(text))


latin = ["ship", "tide.", "06:40", "e.g.", "Kaldvik!", "£5", "søndag?", "x" * 130, "a" * 40, "#", "\x01"]
words = st.sampled_from([*latin, "潮汐。", "漁船", "🚢🏽", "مرحبا؟", "สวัสดีครับ"])
lines = st.lists(words, min_size=1, max_size=40).map(" ".join)
spaces = st.sampled_from([" ", "\n", "\n\n", "\r\n\r\n", "\n \t\n", "\u3000", "\n\n\n"])
marks = st.sampled_from(["# Port", "## Quay ##", "###### Deep", "```", "~~~ sh", "#hash", "    # code", "# " + "long " * 20])
texts = st.lists(st.tuples(lines | marks.map(lambda one: f"\n{one}\n"), spaces).map("".join), max_size=12).map("".join)
chunkings = st.builds(Chunking, st.sampled_from(["sentences", "structure"]), st.integers(1, 40)) | st.integers(1, 40).flatmap(
    lambda size: st.builds(Chunking, st.just("tokens"), st.just(size), st.integers(0, size // 2))
)


@settings(max_examples=300, deadline=None)
@given(texts, chunkings)
def test_nothing_is_lost_and_no_chunk_is_too_long(text: str, chunking: Chunking) -> None:
    chunks = cut(text, chunking)
    assert [one.position for one in chunks] == list(range(len(chunks)))
    seen = np.array([sign.isspace() for sign in text], dtype=bool)
    for heading in headings(text):
        # Its words stand in the title of what is under it.
        seen[heading.start : heading.end] = True
    for one in chunks:
        assert one.text == text[one.start : one.end] == one.text.strip() != ""
        assert one.title.strip()
        assert "\n" not in one.title
        # A run that is one unknown token is counted by its pieces; as it stands in the chunk it may be one token again.
        assert tokens(one.text) <= chunking.size
        seen[one.start : one.end] = True
    assert seen.all()
    for left, right in pairwise(chunks):
        assert left.start < right.start
        assert left.end < right.end


def test_sentences_are_whole_and_neighbours_share_one() -> None:
    text = " ".join(f"Ship {at} is at quay {at}." for at in range(30))
    # Seven tokens a sentence: three fit, and the last of them comes again.
    chunks = cut(text, Chunking("sentences", 21))
    assert {tokens(one.text) for one in chunks} <= {14, 21}
    assert chunks[0].text == "Ship 0 is at quay 0. Ship 1 is at quay 1. Ship 2 is at quay 2."
    assert chunks[1].text == "Ship 2 is at quay 2. Ship 3 is at quay 3. Ship 4 is at quay 4."
    assert all(re.fullmatch(r"Ship .* \d+\.", one.text) for one in chunks)
    # Where two do not fit together, none is said twice.
    assert [one.text for one in cut(text, Chunking("sentences", 13))] == [f"Ship {at} is at quay {at}." for at in range(30)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("今天天气很好。我们去公园。好吗？", ["今天天气很好。", "我们去公园。", "好吗？"]),
        ("مرحبا بكم. كيف حالك؟ أنا بخير.", ["مرحبا بكم.", "كيف حالك؟", "أنا بخير."]),
        (
            "👩‍👩‍👧‍👧 came in. Yes, they did 👍🏽! Ünï cödé stays.",
            ["👩‍👩‍👧‍👧 came in.", "Yes, they did 👍🏽!", "Ünï cödé stays."],
        ),
        ("Dr. Breke et al. sail at 3.5 knots. It rains.", ["Dr. Breke et al. sail at 3.5 knots.", "It rains."]),
    ],
)
def test_sentences_of_many_scripts(text: str, sentences: list[str]) -> None:
    size = max(map(tokens, sentences))
    assert [one.text for one in cut(text, Chunking("sentences", size))] == sentences


def test_what_is_too_long_is_cut_by_the_next_smaller_thing() -> None:
    table = "\n".join(f"ship {at} | quay {at}" for at in range(6))
    # Five tokens a line without a full stop anywhere: two whole lines fit.
    assert [one.text.count("\n") for one in cut(table, Chunking("structure", 10))] == [1, 1, 1]
    run = " ".join(f"w{at}" for at in range(25))
    assert [len(one.text.split()) for one in cut(run, Chunking("structure", 10))] == [10, 10, 5]


def test_paragraphs_stay_whole_where_they_fit() -> None:
    first, second, third = ("One ship sails. Two ships wait.", "Three ships sink. All is well.", "Four.")
    chunks = cut(f"{first}\n\n{second}\n \n{third}\n", Chunking("structure", 13))
    assert [one.text for one in chunks] == [first, f"{second}\n \n{third}"]


def test_windows_of_tokens_overlap_and_break_no_word() -> None:
    text = " ".join(f"w{at:02}" for at in range(40))
    chunks = cut(text, Chunking("tokens", 12, 4))
    assert [one.text.split()[0] for one in chunks] == ["w00", "w08", "w16", "w24", "w32"]
    assert [one.text.split()[-1] for one in chunks] == ["w11", "w19", "w27", "w35", "w39"]
    # Words of two tokens: an odd window ends before the word that does not fit, and no more than three tokens come again.
    chunks = cut(" ".join(f"harbou{at:02}" for at in range(20)), Chunking("tokens", 7, 3))
    assert all(re.fullmatch(r"(harbou\d\d ?)+", one.text) for one in chunks)
    assert {tokens(one.text) for one in chunks[:-1]} == {6}
    assert all(right.start < left.end for left, right in pairwise(chunks))


MARKDOWN = """# The *Canteen*

It opens.

## The menu ##

Soup.

### Fish
Cod.
## Orders
```sh
# no heading
```
Late.
"""


def test_the_title_is_the_path_of_headings() -> None:
    chunks = cut(MARKDOWN, Chunking("structure", 50))
    assert [(one.title, one.text) for one in chunks] == [
        ("The *Canteen*", "It opens."),
        ("The *Canteen* > The menu", "Soup."),
        ("The *Canteen* > The menu > Fish", "Cod."),
        ("The *Canteen* > Orders", "```sh\n# no heading\n```\nLate."),
    ]
    assert chunks[1].passage == "The *Canteen* > The menu: Soup."
    # The same lines end as they do elsewhere.
    windows = cut(MARKDOWN.replace("\n", "\r\n"), Chunking("structure", 50))
    assert [one.title for one in windows] == [one.title for one in chunks]


@pytest.mark.parametrize(
    ("name", "text", "titles"),
    [
        ("a/b.c.md", "It opens.", ["b.c"]),
        ("10.1/abc.2", "It opens.", ["abc.2"]),
        ("doc1", "Tides of the north\n\nThey rise.", ["Tides of the north"]),
        ("doc1", "They rise.\n\nThey fall.", ["doc1"]),
        ("doc1", "Tides\n\n## Spring\n\nThey rise.", ["Tides", "Tides > Spring"]),
        ("doc1", " ".join(["word"] * 20) + "\n\nThey rise.", [" ".join(["word"] * 16)]),
        ("doc1", "# A\n\nOne.\n\n# B\n\nTwo.", ["A", "B"]),
        ("doc1", "# C#\n\nOne.", ["C#"]),
        ("doc1", "#\n\nOne.", ["doc1"]),
    ],
)
def test_titles_of_other_documents(name: str, text: str, titles: list[str]) -> None:
    assert [one.path for one in sections(Document(name, text))] == [tuple(one.split(" > ")) for one in titles]


def test_a_heading_that_no_title_can_hold_is_text() -> None:
    long = "# " + " ".join(["word"] * 17)
    (chunk,) = cut(f"{long}\n\nOne.", Chunking("structure", 50))
    assert (chunk.title, chunk.text) == (" ".join(["word"] * 16), f"{long}\n\nOne.")


def test_the_passage_fits_the_window() -> None:
    path = [f"{'#' * (at + 1)} heading{at} of {at} ships and more" for at in range(5)]
    text = "\n".join(path) + "\n" + "ship " * 100
    chunks = list(Chunking("tokens", 20).split(Document("d", text), embedder(window=44)))
    assert len(chunks) == 5
    # The first and the last heading are kept; two of the tokens are the marks at the ends.
    assert {one.title for one in chunks} == {"heading0 of 0 ships and more > heading4 of 4 ships and more"}
    assert max(tokens(one.passage) for one in chunks) + 2 <= 44
    narrow = list(Chunking("tokens", 20).split(Document("d", text), embedder(window=34)))
    assert {one.title for one in narrow} == {"heading0 of 0 ships and more >"}
    assert max(tokens(one.passage) for one in narrow) + 2 <= 34


@pytest.mark.parametrize("how", ["sentences", "structure", "tokens"])
def test_documents_with_nothing_to_say_have_no_chunks(how: limits.How) -> None:
    for text in ("", " \n\t\r\n", "# Only a heading", "# One\n\n## Two\n"):
        assert cut(text, Chunking(how, 20)) == []


@pytest.mark.parametrize("how", ["sentences", "structure", "tokens"])
def test_a_long_document_is_tokenised_in_parts(how: limits.How, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BLOCK", 2_000)
    reader = Words()
    text = "# Tides\n\n" + " ".join(f"Tide {at} rises." for at in range(2_000)) + "\n\n## Last\n\nEnd."
    chunks = list(Chunking(how, 30).split(Document("d", text), cast(Embedder, reader)))
    assert reader.longest <= 2_000
    assert " ".join(dict.fromkeys(re.findall(r"Tide (\d+)", " ".join(one.text for one in chunks)))) == " ".join(
        map(str, range(2_000))
    )
    assert (chunks[-1].title, chunks[-1].text) == ("Tides > Last", "End.")


@pytest.mark.parametrize("how", ["sentences", "structure", "tokens"])
def test_a_line_without_any_space_is_cut(how: limits.How) -> None:
    text = "x" * 10_000
    chunks = cut(text, Chunking(how, 50))
    assert "".join(one.text for one in chunks) == text
    # Pieces of fifty letters, thirteen tokens each.
    assert {len(one.text) for one in chunks[:-1]} <= set(range(180, 201))


def test_what_the_embedding_model_cannot_read_does_not_make_a_chunk_huge() -> None:
    # Each word is one unknown token, as words of another script are; it counts by its letters, and is not cut.
    text = " ".join(f"{at:02}" + "ท" * 38 for at in range(50))
    chunks = list(Chunking("sentences", 40).split(Document("d", text), embedder(unknown=10)))
    assert [len(one.text.split()) for one in chunks] == [4] * 12 + [2]
    # A run without any space is one token in pieces of fifty letters.
    chunks = list(Chunking("sentences", 40).split(Document("d", "ท" * 1000), embedder(unknown=10)))
    assert [len(one.text) for one in chunks] == [150] * 6 + [100]


def test_half_of_a_surrogate_pair_harms_nothing() -> None:
    text = "One \ud83d ship sails. Two wait."
    assert [one.text for one in cut(text, Chunking("sentences", 6))] == ["One \ud83d ship sails.", "Two wait."]


def test_a_character_of_several_tokens_is_never_cut() -> None:
    class Bytes(Words):
        def token_spans(self, text: str) -> list[tuple[int, int]]:
            return [(at, at + 1) for at, sign in enumerate(text) for _ in sign.encode()]

    places = TokenPlaces("漁船漁船", 0, 4, cast(Embedder, Bytes()))
    assert places.count(0, 4) == 12
    assert places.windows(0, 4, 7) == [(0, 2), (2, 4)]
    assert places.windows(0, 4, 2) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_names_and_settings_tell_chunkings_apart() -> None:
    assert [one.name for one in (Chunking("sentences", 96), Chunking("tokens", 192, 32))] == ["sentences_96", "tokens_192_32"]
    assert Chunking("tokens", 192).settings != Chunking("tokens", 192, 32).settings != Chunking("structure", 192).settings
    for how, size, overlap in (("words", 9, 0), ("tokens", 0, 0), ("tokens", 9, 5), ("sentences", 9, 1)):
        with pytest.raises(ValueError, match=how):
            Chunking(cast(limits.How, how), size, overlap)


@settings(max_examples=150, deadline=None)
@given(texts, chunkings, st.data())
def test_neighbours_joined_are_the_document_but_for_what_stands_between(
    text: str, chunking: Chunking, data: st.DataObject
) -> None:
    chunks = cut(text, chunking)
    if not chunks:
        return
    first = data.draw(st.integers(0, len(chunks) - 1))
    some = chunks[first : data.draw(st.integers(first + 1, len(chunks)))]
    whole = around(some)
    assert (whole.title, whole.position, whole.start, whole.end) == (
        some[0].title,
        some[0].position,
        some[0].start,
        some[-1].end,
    )
    assert len(whole.text) == whole.end - whole.start
    for one in some:
        assert whole.text[one.start - whole.start : one.end - whole.start] == one.text


def test_neighbours_under_other_headings_say_so() -> None:
    chunks = cut(MARKDOWN.replace("\n#", "\n\n#"), Chunking("structure", 50))
    joined = around(chunks[:3])
    assert [line for line in joined.text.splitlines() if line] == ["It opens.", "## The menu", "Soup.", "### Fish", "Cod."]
    assert around(chunks[:1]) == chunks[0]
    for wrong in ([], [chunks[0], Chunk("other", "t", 1, 9, 10, "x")]):
        with pytest.raises(ValueError, match="one document"):
            around(cast(Sequence[Chunk], wrong))


def test_a_real_tokeniser_counts_the_same(tiny_embeddings: Path) -> None:
    reader = Embedder(str(tiny_embeddings))
    for chunking in (Chunking("sentences", 96), Chunking("structure", 192), Chunking("tokens", 192, 32)):
        chunks = list(chunking.split(Document("d", MARKDOWN + "Ships sail. " * 60), reader))
        assert len(chunks) > 4
        assert max(len(reader.token_spans(one.text)) for one in chunks) <= chunking.size
        assert max(len(reader.token_spans(one.passage)) for one in chunks) + 2 <= reader.window
