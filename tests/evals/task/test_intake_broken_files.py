"""A corpus of broken files, written here: each ends in a problem that names its place, never in a crash, a hang or a flood."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from evals.errors import AdvisorError, Problem, ProblemsError
from evals.task.reading.formats import MAX_PROBLEMS, read_rows
from evals.task.reading.strict_json import JsonError, parse
from evals.task.spec import ColumnsSpec

USUAL = ColumnsSpec()
GOOD = '{"input": "q", "output": "a"}\n'
ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def message(*turns: Any) -> str:
    return json.dumps({"messages": list(turns)}) + "\n"


def parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows", b"0" * 50_000_000)
    return sink.getvalue()


SMALL = parquet_bytes(pa.table({"input": ["q", "r"], "output": ["a", "b"]}))
# Two rows with one byte of the footer changed: Arrow aborts over it (found by changing bytes at random).
ABORTS = zlib.decompress(
    base64.b85decode(
        r"""c-noEJ5K^Z5XWcF^MZx~h<n*huAq>M1t6M0jG-A2#0Ux`DwfA1h*2KLtFg4O@I(1g{1#d|dk_vIaf+GAe|CN|o82nbkGRhFxF}PA2*B<>1Avio"""
        r"""E(adrW}GS^Zg9iOzyWgw8->GE-HB@Cb;h=|O$0}|<|aZ@Fy}8pX44>yaqFS;>~I};Fs6y^UVk{9#Gq`^IZ|fA7)&R=Wa`qAaT_cilxZ+Ra@oN("""
        r"""Q#W7CS7vAJ!1~rwZ30{aav=&?A{f#JonY&j<rtsy!R&XozWskB^P8Ev9WdWCkd_Eyy?%Xny11G6WQWQ!sH}zyyF{F0u8T#)F6O(QmdhblRFX%$"""
        r"""@B}~NB3)#jzj`F-2_=PM!4o}50atdf#96yhpSK${w&I<yVXmh5=ZGylTf$aNwHt50(yvufwNS^?v{kxI`7M4OM0Du5qiJW7Xbp!6$8`tu=&a+8"""
        r"""dxL)TIFn2zk7S%)Pd(rleUd7D!5_64c`5"""
    )
)
USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}

# file name -> (its bytes, the line that is told (0: the file), what is said). A good row stands before most broken ones.
Corpus = dict[str, tuple[bytes | str | Callable[[], bytes], int, str]]
LINES: Corpus = {
    "latin.jsonl": (b'{"input": "caf\xe9", "output": "a"}\n', 1, "byte 14 cannot be read"),
    "latin-late.jsonl": (GOOD.encode() * 3000 + b"\xe9\n", 3001, "byte 90,000 cannot be read"),
    "cut-character.jsonl": (GOOD.encode() + "é".encode()[:1], 2, "not UTF-8"),
    "utf16.jsonl": (GOOD.encode("utf-16"), 0, "UTF-16"),
    "utf16-be.jsonl": (b"\xfe\xff" + GOOD.encode("utf-16-be"), 0, "UTF-16"),
    "utf16-bare.jsonl": (GOOD.encode("utf-16-le"), 1, "NUL"),
    "utf32.jsonl": (GOOD.encode("utf-32"), 0, "UTF-32"),
    "nul.jsonl": (GOOD + '{"input": "a\0b", "output": "c"}\n', 2, "NUL"),
    "nul-only.jsonl": (b"\0" * 1000, 1, "NUL"),
    "empty.jsonl": ("", 0, "no rows"),
    "mark-only.jsonl": (b"\xef\xbb\xbf", 0, "no rows"),
    "blank.jsonl": ("\r\n \r\n", 0, "no rows"),
    "cut-off.jsonl": (GOOD + '{"input": "q", "outp', 2, "unterminated string"),
    "trailing-comma.jsonl": (GOOD + '{"input": "q", "output": "a",}\n', 2, "broken JSON"),
    "single-quotes.jsonl": (GOOD + "{'input': 'q', 'output': 'a'}\n", 2, "broken JSON"),
    "python.jsonl": (GOOD + '{"input": "q", "output": None}\n', 2, "broken JSON"),
    "two-in-a-line.jsonl": (GOOD + '{"input": "q", "output": "a"}{"input": "q", "output": "a"}\n', 2, "after the value"),
    "comment.jsonl": (GOOD + "// a comment\n", 2, "broken JSON"),
    "control.jsonl": (GOOD + '{"input": "a\tb", "output": "c"}\n', 2, "control character"),
    "deep.jsonl": (GOOD + '{"input": "q", "output": ' + "[" * 10_000 + "]" * 10_000 + "}\n", 2, "nested too deeply"),
    "deep-101.jsonl": (GOOD + '{"input": "q", "output": ' + '{"a":' * 101 + "1" + "}" * 101 + "}\n", 2, "nested too deeply"),
    "twice.jsonl": (GOOD + '{"input": "q", "output": "a", "output": "b"}\n', 2, "the key 'output' stands here twice"),
    "twice-inside.jsonl": (GOOD + '{"input": "q", "output": {"x": {"k": 1, "k": 1}}}\n', 2, "the key 'k'"),
    "nan.jsonl": (GOOD + '{"input": "q", "output": NaN}\n', 2, "NaN is no JSON number"),
    "infinity.jsonl": (GOOD + '{"input": "q", "output": [-Infinity]}\n', 2, "-Infinity is no JSON number"),
    "overflow.jsonl": (GOOD + '{"input": "q", "output": 1e999}\n', 2, "1e999 is too large"),
    "huge-integer.jsonl": (GOOD + '{"input": "q", "output": ' + "7" * 5000 + "}\n", 2, "a number of 5,000 digits"),
    "surrogate.jsonl": (GOOD + '{"input": "q", "output": "\\ud83d"}\n', 2, "surrogate"),
    "surrogate-key.jsonl": (GOOD + '{"input": "q", "output": "a", "\\udc00": 1}\n', 2, "surrogate"),
    "long-line.jsonl": (GOOD + '{"input": "' + "x" * 1_000_001 + '", "output": "a"}\n', 2, "longer than 1,000,000"),
    "mixed-answers.jsonl": (GOOD + '{"input": "q", "output": 1}\n', 2, "a number here and text in line 1"),
    "mixed-formats.jsonl": (GOOD + message(USER, BOT), 0, "input/output, messages"),
    "list.jsonl": (GOOD + "[1, 2]\n", 2, "one JSON object"),
    "no-assistant.jsonl": (message(USER, BOT) + message(USER), 2, "must be the assistant's"),
    "robot.jsonl": (message(USER, {"role": "robot", "content": "a"}), 1, "`role` of"),
    "no-content.jsonl": (message(USER, {"role": "assistant"}), 1, "`content` as text"),
    "nameless-call.jsonl": (message(USER, {"role": "assistant", "tool_calls": [{"function": {}}]}), 1, "needs the name"),
    "arguments.jsonl": (
        message(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}),
        1,
        "text of an object",
    ),
    "escape-id.jsonl": (json.dumps({"input": "q", "output": "a", "id": ESCAPE}) + "\n", 1, "is no name"),
    "escape-key.jsonl": (json.dumps({ESCAPE: "q"}) + "\n", 1, "set `columns:`"),
    "escape-role.jsonl": (message({"role": ESCAPE, "content": "q"}, BOT), 1, "`role` of"),
    f"escape{ESCAPE.replace('/', '')}\nname.jsonl": ("{broken\n", 1, "broken JSON"),
    "right-to-left.jsonl": (json.dumps({"input": "q", "output": 1, "id": ["\u202etxt"]}) + "\n", 1, "text or a number"),
}
DOCUMENTS: Corpus = {
    "cut-off.json": ('[\n{"input": "q", "output": "a"},\n{"input": "q", "out', 3, "broken JSON"),
    "not-closed.json": ('[\n{"input": "q", "output": "a"}\n', 3, "cut off"),
    "comma-missing.json": ('[\n{"input": "q", "output": "a"}\n{"input": "r", "output": "b"}]', 3, "',' or ']' is missing"),
    "comma-too-many.json": ('[\n{"input": "q", "output": "a"},\n]', 3, "a comma stands before"),
    "one-broken.json": (
        '[\n{"input": "q", "output": "a"},\n{"input": "q" "output": 1},\n{"input": "r", "output": "b"}]',
        3,
        "broken",
    ),
    "duplicate.json": ('[\n{"input": "q", "output": "a"},\n{"a": 1, "a": 2}]', 3, "the key 'a' stands here twice"),
    "no-objects.json": ("[\n1]", 2, "each element is one JSON object"),
    "number.json": ("7", 1, "one JSON object"),
    "deep.json": ("[" * 10_000, 1, "nested too deeply"),
    "two-lists.json": ('{"a": [{"input": "q", "output": "a"}],\n"b": [{"input": "q"}]}', 2, "two lists of objects"),
    "key-twice.json": ('{"a": 1,\n"a": 2}', 2, "'a' stands here twice"),
    "two-documents.json": ('{\n"input": "q", "output": "a"}\n{\n"a": 2}', 3, "something stands after its end"),
    "settings.json": ('{\n"lr": 0.1,\n"layers": [1, 2]}', 1, "set `columns:`"),
    "long-text.json": ('[{"input": "' + "x" * 3_000_000 + '"}]', 1, "longer than 1,000,000"),
    "nul.json": ('[{"input": "\0"}]', 1, "NUL"),
}
TABLES: Corpus = {
    "open-quote.csv": ('input,output\nq,a\n"r,b\ns,c\n', 3, "never closed"),
    "open-quote-late.csv": ('input,output\nq,a\n"' + "r,b\n" * 300_000, 3, "is a quote never closed?"),
    "stray-quote.csv": ('input,output\nq,a\n"r"s,b\n', 3, "broken CSV"),
    "short-row.csv": ("input,output\nq,a\nr\n", 3, "1 cells in this row, and 2 columns"),
    "long-row.csv": ("input,output\nq,a\nr,s,t\n", 3, "3 cells in this row, and 2 columns"),
    "column-twice.csv": ("input,output,output\nq,a,b\n", 1, "stands in the header twice"),
    "header-only.csv": ("input,output\n", 0, "no rows"),
    "no-header.csv": ("q,a\nr,b\n", 2, "set `columns:`"),
    "empty-answer.csv": ("input,output\nq,a\nr,\n", 3, "the output is empty"),
    "bad-list.csv": ('input,output,gold_passages\nq,a,"[1,"\n', 2, "no JSON list"),
    "bad-messages.csv": ('messages\n"[{""role"": ""user""}]"\n', 2, "`content` as text"),
    "prose.txt": ("Once upon a time.\nThere was a table.\n", 2, "set `columns:`"),
    "cell.csv": ("input,output\n" + "x" * 1_000_001 + ",a\n", 2, "longer than 1,000,000"),
    "columns.csv": (",".join(f"c{at}" for at in range(1200)) + "\n", 1, "1,200 columns"),
    "nul.csv": ("input,output\nq\0,a\n", 2, "NUL"),
    "latin.csv": (b"input,output\ncaf\xe9,a\n", 2, "byte 16 cannot be read"),
}
BINARIES: Corpus = {
    "rows.jsonl.gz": (gzip.compress(GOOD.encode()), 0, "gzip"),
    "cut-off.gz": (gzip.compress(GOOD.encode())[:10], 0, "gzip"),
    "bomb.parquet": (zipped, 0, "a ZIP archive"),
    "bomb.xlsx": (zipped, 0, "a ZIP archive"),
    "cut-off.parquet": (SMALL[: len(SMALL) // 2], 0, "not a Parquet file that can be read"),
    "head-only.parquet": (b"PAR1", 0, "not a Parquet file that can be read"),
    "garbage.bin": (bytes(range(1, 256)), 3, "byte 127 cannot be read"),
    "aborts.parquet": (ABORTS, 0, "not a Parquet file that can be read"),
    "mess.parquet": (SMALL[:20] + b"\xff" * 20 + SMALL[40:], 0, "not a Parquet file that can be read"),
    "foot.parquet": (SMALL[:-40] + b"\x7f" * 32 + SMALL[-8:], 0, "not a Parquet file that can be read"),
    "numbers.parquet": (parquet_bytes(pa.table({"input": [1], "output": ["a"]})), 1, "must be text, not int"),
    "infinite.parquet": (parquet_bytes(pa.table({"input": ["q"], "output": [float("inf")]})), 1, "no JSON numbers"),
    "bytes.parquet": (parquet_bytes(pa.table({"input": [b"\xff"], "output": ["a"]})), 1, "this key is missing"),
    "nulls.parquet": (parquet_bytes(pa.table({"input": ["q"], "output": pa.array([None], pa.string())})), 1, "is empty"),
    "empty.parquet": (parquet_bytes(pa.table({"input": pa.array([], pa.string())})), 0, "no rows"),
    "pickle.pkl": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0.", 1, "cannot be read"),
    "page.pdf": (b"%PDF-1.7\n", 0, "a PDF"),
    "base.sqlite": (b"SQLite format 3\0", 0, "a database"),
    "archive.zst": (b"\x28\xb5\x2f\xfd\0\0", 0, "zstd"),
}
CORPUS = LINES | DOCUMENTS | TABLES | BINARIES


def test_the_corpus_is_large_enough() -> None:
    assert len(CORPUS) >= 60


@pytest.mark.timeout(10)
@pytest.mark.parametrize("file", CORPUS, ids=lambda name: name.encode("ascii", "backslashreplace").decode().replace("\n", ""))
def test_a_broken_file_ends_in_a_problem_with_its_place(tmp_path: Path, file: str) -> None:
    body, line, says = CORPUS[file]
    body = body() if callable(body) else body
    (tmp_path / file).write_bytes(body if isinstance(body, bytes) else body.encode())
    rows, problems, _ = read_rows(file, tmp_path, USUAL)
    assert [one.line for one in problems if says in one.message] == [line], problems
    assert len(problems) == 1
    for one in problems:
        assert one.file == str(tmp_path / file)
        assert no_control(str(one))
        assert len(str(one)) < 1000 + len(str(tmp_path))
    if body[:3] in {GOOD[:3], GOOD[:3].encode()} and line == 2 and "NUL" not in says and "UTF-8" not in says:
        # The good row before the broken one is read; an answer of another type is a row too.
        assert len(rows) == 1 + ("and text in line" in says)


def no_control(text: str) -> bool:
    return not any(unicodedata.category(sign) == "Cc" or sign in "\u202e\u2066" for sign in text)


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.symlink("loop.jsonl", tmp_path / "loop.jsonl")
    os.symlink("gone.jsonl", tmp_path / "dangling.jsonl")
    os.symlink("pipe.jsonl", tmp_path / "to-pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "closed.jsonl").write_text(GOOD)
    (tmp_path / "closed.jsonl").chmod(0)
    said = {
        "pipe.jsonl": "no regular file",
        "to-pipe.jsonl": "no regular file",
        "loop.jsonl": "cannot be read",
        "dangling.jsonl": "no such file",
        "folder.jsonl": "no data files",
        "/dev/zero": "no regular file",
    }
    if os.geteuid() != 0:
        said["closed.jsonl"] = "cannot be read"
    for file, says in said.items():
        rows, (problem,), _ = read_rows(file, tmp_path, USUAL)
        assert not rows
        assert says in problem.message


def test_a_flood_of_problems_is_cut(tmp_path: Path) -> None:
    (tmp_path / "flood.jsonl").write_text("x\n" * (MAX_PROBLEMS + 500))
    _, problems, _ = read_rows("flood.jsonl", tmp_path, USUAL)
    assert len(problems) == MAX_PROBLEMS + 1
    assert "reading stopped" in problems[-1].message


# What is large is read by a process of its own, which tells its peak of memory.

CHILD = """
import json, re, resource, sys
from pathlib import Path
from evals.task.reading.formats import read_rows
from evals.task.spec import ColumnsSpec
path = Path(sys.argv[1])
rows, problems, _ = read_rows(path.name, path.parent, ColumnsSpec())
status = Path("/proc/self/status")
if status.exists():
    # getrusage tells the peak of whoever forked this process, where that is larger.
    peak = int(re.search(r"VmHWM:\\s*(\\d+)", status.read_text()).group(1)) / 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([len(rows), [[one.line, one.message] for one in problems[:5]], peak]))
"""
MB = 1024 * 1024


def repeated(path: Path, chunk: bytes, times: int, start: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(start)
        for _ in range(times):
            file.write(chunk)


def one_line(path: Path) -> None:
    repeated(path, b"x" * MB, 100, b'{"input": "')


def one_line_document(path: Path) -> None:
    repeated(path, b"x" * MB, 100, b'[{"input": "')


def astral(path: Path) -> None:
    repeated(path, "𝄞".encode() * (MB // 4), 100, b'{"rows": [{"input": "')


def commas(path: Path) -> None:
    repeated(path, b"," * MB, 100, b"input,output\n")


def blanks(path: Path) -> None:
    repeated(path, b"\n" * MB, 100)


def many_values(path: Path) -> None:
    repeated(path, b'{"input": "q", "output": [' + b"[]," * 300_000 + b"0]}\n", 60)


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300 * MB)


def keys(path: Path) -> None:
    with path.open("w") as file:
        file.write("{\n")
        file.writelines(f'"key {at}": {at},\n' for at in range(2_000_000))


def dictionary_bomb(path: Path) -> None:
    """60 KB that decode to 20 GB: a text of a megabyte that 20,000 rows point to."""
    table = pa.table(
        {"input": pa.array(["x" * 999_999]).dictionary_encode().take(pa.array([0] * 20_000)), "output": ["a"] * 20_000}
    )
    parquet.write_table(table, path, compression="zstd")


def nested_bomb(path: Path) -> None:
    """One row whose list points to the same text a million times."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), pa.array(["x" * 100_000]))
    table = pa.table({"gold_passages": pa.ListArray.from_arrays([0, 1_000_000], texts), "input": ["q"], "output": ["a"]})
    parquet.write_table(table, path, compression="zstd")


def plain_bomb(path: Path) -> None:
    """Zeros, compressed: 400 MB without a dictionary."""
    with parquet.ParquetWriter(path, pa.schema({"input": pa.string()}), compression="zstd", use_dictionary=False) as writer:
        for _ in range(40):
            writer.write_table(pa.table({"input": ["0" * (10 * MB)]}))


def rows_bomb(path: Path) -> None:
    parquet.write_table(pa.table({"input": pa.nulls(50_000_000, pa.string())}), path)


HEAVY: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "one-line.jsonl": (one_line, 1, "longer than 1,000,000"),
    "one-line.json": (one_line_document, 1, "longer than 1,000,000"),
    "astral.json": (astral, 1, "longer than 1,000,000"),
    "commas.csv": (commas, 2, "longer than 1,000,000"),
    "blanks.jsonl": (blanks, 2_000_001, "more than 2,000,000 lines"),
    "values.jsonl": (many_values, 34, "more than 10,000,000 values"),
    "large.jsonl": (too_large, 0, "larger than 256 MB"),
    "keys.json": (keys, 0, "that is no list of rows"),
    "dictionary.parquet": (dictionary_bomb, 0, "decodes to more than 256 MB"),
    "nested.parquet": (nested_bomb, 0, "decodes to more than 256 MB"),
    "plain.parquet": (plain_bomb, 0, "decodes to 400 MB"),
    "rows.parquet": (rows_bomb, 0, "50,000,000 rows"),
}


@pytest.mark.parametrize("file", HEAVY)
def test_a_large_or_exploding_file_ends_soon_and_in_little_memory(tmp_path: Path, file: str) -> None:
    build, line, says = HEAVY[file]
    path = tmp_path / file
    build(path)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    path.unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    _, problems, peak = json.loads(done.stdout)
    assert says in problems[-1][1]
    assert problems[-1][0] == line or (line == 0 and file == "keys.json")
    assert peak < 1024
    print(file, round(peak), "MB")


# Whatever the bytes are.

PIECES = [
    b"{",
    b"[",
    b'"',
    b"}",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r",
    b";",
    b"\t",
    b"input",
    b"output",
    b'"input": "q"',
    b'"output": 1',
]
PIECES += [
    b'{"input": "q", "output": "a"}',
    b"messages",
    b'[{"role": "user", "content": "q"}]',
    b"\\ud83d",
    b"\xff",
    b"\0",
    b"1e999",
    b"nul",
]
PIECES += [
    b'"conversations": [{"from": "human", "value": "q"}]',
    b'"chosen"',
    b'"rejected"',
    b'"prompt"',
    b'"tools": "["',
    b"NaN",
]
mixtures = st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=120) | mixtures, suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ""]))
def test_whatever_bytes_a_file_holds_there_are_rows_or_problems(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, suffix: str
) -> None:
    file = tmp_path_factory.getbasetemp() / f"any{suffix}"
    file.write_bytes(body)
    rows, problems, detected = read_rows(file.name, file.parent, USUAL)
    assert rows or problems
    assert bool(rows) <= bool(detected)
    for one in problems:
        assert one.message
        assert no_control(str(one))
    for row in rows:
        assert row.example.text.strip()
        assert row.example.target.strip()


@settings(max_examples=15, deadline=None)
@given(at=st.integers(0, len(SMALL) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_parquet_file_is_rows_or_problems(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.parquet"
    file.write_bytes(SMALL[:at] if cut else SMALL[:at] + bytes([value]) + SMALL[at + 1 :])
    rows, problems, _ = read_rows(file.name, file.parent, USUAL)
    assert rows or problems


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=3)
    ),
)


@given(values)
def test_sound_json_is_read_as_python_reads_it(value: Any) -> None:
    text = json.dumps(value)
    assert parse(text) == json.loads(text)


@given(st.text(max_size=30))
def test_any_text_is_json_or_an_error(text: str) -> None:
    with contextlib.suppress(JsonError):
        assert json.dumps(parse(text)) == json.dumps(json.loads(text))


def test_messages_for_people_hold_nothing_that_a_terminal_obeys() -> None:
    problem = Problem(f"a{ESCAPE}\nb.jsonl", 3, f"k{ESCAPE}", f"bad {ESCAPE}\x9b31m\u202e\r\nvalue")
    assert no_control(str(problem))
    assert str(problem).startswith("a␛]0;owned␇␛[31m␊b.jsonl:3: k␛")
    error = AdvisorError(f"no {ESCAPE}", where=f"x\x08{ESCAPE}", do="mend it.")
    assert str(error).split("\n")[1] == "What to do: mend it."
    for text in (str(error), str(ProblemsError([problem, problem]))):
        assert no_control(text.replace("\n", ""))
