"""Documents: what people read in them is kept, what nobody reads is dropped, and a hostile file is one problem."""

from __future__ import annotations

import json
import os
import resource
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.errors import Problem
from evals.task.checks.quality import repeated_documents
from evals.task.reading import documents as limits
from evals.task.reading.apart import Apart
from evals.task.reading.documents import read_documents
from evals.task.reading.html_text import html_text
from evals.task.reading.text_file import FileError

PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p {color: red}</style></head><body>
<nav><a href="/">Home</a></nav><div role="navigation">Menu</div>
<h1>The  <em>Canteen</em></h1>
<p>It opens<br>at 7:40 &amp; closes
at 15:00.</p><script>alert("x")</script><!-- nothing -->
<ul><li>Soup</li><li>Bread</li></ul>
<table><tr><th>Day</th><th>Dish</th></tr><tr><td>Mon</td><td>Peas</td></tr></table>
<pre>a  b
c</pre></body></html>"""


def pdf(*contents: bytes, filter: bytes = b"", extra: bytes = b"", trailer: bytes = b"") -> bytes:
    """A PDF of one page for each stream of drawing commands, written by hand."""
    count = len(contents)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * at) for at in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for at, content in enumerate(contents):
        fonts = b"<< /Font << /F1 3 0 R >> %s >>" % extra
        objects.append(b"<< /Type /Page /Parent 2 0 R /Resources %s /Contents %d 0 R >>" % (fonts, 5 + 2 * at))
        objects.append(b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), filter, content))
    body, offsets = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    end = b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, trailer, len(body))
    return body + head + table + end


def words(text: str) -> bytes:
    return b"BT /F1 12 Tf 72 700 Td (%s) Tj ET" % text.encode()


def folder_of(tmp_path: Path, **files: bytes | str) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, body in files.items():
        (folder / name.replace("__", ".")).write_bytes(body if isinstance(body, bytes) else body.encode())
    return folder


def only_problem(folder: Path) -> Problem:
    _, (problem,) = read_documents(folder)
    return problem


def test_every_kind_of_document_is_read_in_order(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, b__md="# B\r\ntext", c__TXT="\ufeffplain", d__html=PAGE, a__pdf=pdf(words("Hello"), words("World"))
    )
    documents, problems = read_documents(folder)
    assert not problems
    assert [one.id for one in documents] == ["a.pdf", "b.md", "c.TXT", "d.html"]
    texts = [one.text for one in documents]
    assert texts[:3] == ["Hello\n\nWorld", "# B\ntext", "plain"]
    assert texts[3] == (
        "# The Canteen\n\nIt opens\nat 7:40 & closes at 15:00.\n\n- Soup\n- Bread\n\nDay Dish\nMon Peas\n\na  b\nc"
    )


def test_a_page_of_ten_thousand_levels_is_read() -> None:
    assert html_text("<div>" * 10_000 + "deep" + "</div>" * 10_000) == "deep"
    assert html_text("<b>never <i>closed <p>at all") == "never closed\n\nat all"
    with pytest.raises(FileError, match="more than 200,000 tags"):
        html_text("<b>" * 200_001)


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from(["<p>", "</p>", "<![CDATA[", "<!--", "x", "<pre>", "&#0;", "<!", "<?"])).map("".join)
)
def test_any_text_is_a_page_or_an_error(page: str) -> None:
    try:
        text = html_text(page)
    except FileError:
        return
    assert isinstance(text, str)


def test_a_stray_text_in_a_page_stays(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a__htm="a < b & c > d")
    assert [one.text for one in read_documents(folder)[0]] == ["a < b & c > d"]


def test_rows_of_documents(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    bodies = [{"id": "a", "text": "one"}, {"id": 2, "text": "two"}]
    path.write_text("".join(json.dumps(one) + "\n" for one in bodies))
    documents, problems = read_documents(path)
    assert [(one.id, one.text) for one in documents] == [("a", "one"), ("2", "two")]
    assert not problems
    bad = [
        '{"id": "a", "text": "x"}',
        '{"text": "y"}',
        '{"id": "c"}',
        '{"id": "d", "text": " "}',
        "{",
        '{"id": "e", "text": "one"}',
    ]
    with path.open("a") as file:
        file.write("\n".join(bad))
    documents, problems = read_documents(path)
    assert len(documents) == 3
    assert [(one.line, one.key) for one in problems] == [(3, "id"), (4, "id"), (5, "text"), (6, "text"), (7, "")]
    assert "stands at line 1 too" in problems[0].message


def test_repeated_documents_are_kept_and_told_by_the_checks(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a__md="same", b__md="same", c__md="other")
    documents, problems = read_documents(folder)
    assert ([one.id for one in documents], problems) == (["a.md", "b.md", "c.md"], [])
    (finding,) = repeated_documents(documents)
    assert (finding.check, finding.level, finding.drop) == ("duplicate", "review", False)
    assert [one.id for one in finding.places] == ["b.md", "a.md"]


@pytest.mark.timeout(20)
def test_what_leads_elsewhere_or_cannot_be_read_is_one_problem_each(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, good__md="text", nul__txt=b"a\nb\0", latin__txt=b"a\ncaf\xe9", wide__txt="a".encode("utf-16"))
    (tmp_path / "secret.txt").write_text("secret")
    os.symlink(tmp_path / "secret.txt", folder / "out.txt")
    os.symlink("loop.txt", folder / "loop.txt")
    os.symlink("gone.txt", folder / "gone.txt")
    os.symlink(".", folder / "circle")
    os.symlink("good.md", folder / "link.md")
    os.mkfifo(folder / "pipe.md")
    (folder / "es\x1bc\n.txt").write_bytes(b"\xff")
    documents, problems = read_documents(folder)
    assert [one.id for one in documents] == ["good.md", "link.md"]
    said = {Path(one.file).name: one for one in problems}
    assert len(said) == len(problems) == 9
    for name, says in {
        "nul.txt": "NUL",
        "latin.txt": "byte 5",
        "wide.txt": "UTF-16",
        "out.txt": "leads out",
        "loop.txt": "in a circle",
        "gone.txt": "leads nowhere",
        "circle": "a link to a folder",
        "pipe.md": "no regular file",
        "es\x1bc\n.txt": "not UTF-8",
    }.items():
        assert says in said[name].message, name
        assert "\x1b" not in str(said[name])
        assert "\n" not in str(said[name])
    assert (said["nul.txt"].line, said["latin.txt"].line) == (2, 2)


def test_too_large_and_too_many_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, a__md="text one", b__md="text two", c__md="text three")
    with (folder / "large.txt").open("wb") as file:
        file.truncate(65 * 1024**2)
    with (folder / "large.html").open("wb") as file:
        file.truncate(5 * 1024**2)
    _, problems = read_documents(folder)
    assert [one.message for one in problems] == ["the file is larger than 4 MB", "the file is larger than 64 MB"]
    monkeypatch.setattr(limits, "MAX_TEXT", 20)
    assert "hold more than" in read_documents(folder)[1][-1].message
    monkeypatch.setattr(limits, "MAX_FILES", 2)
    assert "more than 2 documents" in read_documents(folder)[1][-1].message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"%PDF-1.4\n", "the file is broken"),
        (b"no PDF at all", "the file is broken"),
        (pdf(words("x"))[:300], "the file is broken"),
        (pdf(b"0 0 m 10 10 l S"), "no text in it"),
        (
            pdf(
                words("x"),
                trailer=b"/Encrypt << /Filter /Standard /V 1 /R 2 /O (%s) /U (%s) /P -4 >> /ID [(a) (a)]"
                % (b"o" * 32, b"u" * 32),
            ),
            "encrypted",
        ),
        (pdf(zlib.compress(b" " * 100_000_000), filter=b"/Filter /FlateDecode"), "broken"),
    ],
)
@pytest.mark.timeout(20)
def test_a_pdf_without_text_to_give_is_one_problem(tmp_path: Path, body: bytes, says: str) -> None:
    problem = only_problem(folder_of(tmp_path, a__pdf=body))
    assert says in problem.message
    assert Path(problem.file).name == "a.pdf"


@pytest.mark.timeout(30)
def test_a_document_that_takes_for_ever_is_stopped_and_the_next_is_read(tmp_path: Path) -> None:
    """Millions of drawing commands, and a page that Python's parser reads in quadratic time."""
    path = tmp_path / "slow.pdf"
    page = zlib.compress(words("x" * 20) * 200_000)
    path.write_bytes(pdf(*[page] * 40, filter=b"/Filter /FlateDecode"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    (tmp_path / "slow.html").write_text("<a " * 60_000)
    (tmp_path / "good.html").write_text("<p>Hello")
    with Apart(seconds=2) as apart:
        assert apart.text(tmp_path / "good.html") == "Hello"
        for file in ("slow.pdf", "slow.html"):
            with pytest.raises(FileError, match="not read within 2 seconds"):
                apart.text(tmp_path / file)
        assert apart.text(tmp_path / "good.html") == "Hello"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 10


def test_what_lies_beside_the_documents_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pypdf.py").write_text("raise SystemExit('boom')")
    (tmp_path / "json.py").write_text("raise SystemExit('boom')")
    (tmp_path / "a.pdf").write_bytes(pdf(words("Hello")))
    monkeypatch.chdir(tmp_path)
    with Apart() as apart:
        assert apart.text(Path("a.pdf")) == "Hello"
