"""HTML and PDF are read in a process of its own: a hostile file can eat time and memory there, and nothing here.

(60 KB of `<a <a <a` keep Python's HTML parser busy for half a minute, and a PDF is a program.) One process reads all
documents of a folder; where one takes too long or too much, it is ended, that document is a problem, and the next one
gets a new process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from threading import Event, Timer
from types import TracebackType

from evals.task.reading.text_file import FileError, opened

SECONDS = 60.0
MAX_MEMORY = 768 * 1024**2
# The folder of the packages is named, since the program may be started from anywhere; -P keeps what lies there from being
# imported.
STARTER = "import sys; sys.path.append(sys.argv[1]); from evals.task.reading.apart import serve; serve()"


class Apart:
    """`with Apart() as apart: apart.text(path)`. The process starts with the first document."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def text(self, path: Path) -> str:
        """The text of one document. Raises FileError."""
        process = self._started()
        late = Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = Timer(self._seconds, stop)
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(str(path.absolute())) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        except (OSError, ValueError) as error:  # it was killed, or died
            self._end()
            if late.is_set():
                raise FileError(f"not read within {self._seconds:.0f} seconds: save it as text") from error
            raise FileError("reading it broke off (too much memory, most likely): save it as text") from error
        finally:
            timer.cancel()
        if answer["problem"]:
            raise FileError(answer["problem"], answer["line"])
        return str(answer["text"])

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-P", "-c", STARTER, str(Path(__file__).parents[3])]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="ascii"
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve() -> None:
    """The process: a path a line in, as JSON, and for each an object of `text`, `problem` and `line` out."""
    _limit_memory()
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            answer = {"text": _text(Path(json.loads(line))), "problem": "", "line": 0}
        except FileError as error:
            answer = {"text": "", "problem": error.message, "line": error.line}
        except Exception as error:  # whatever a broken file does to its parser, it is one broken file
            reason = (str(error).splitlines() or [""])[0][:200]
            answer = {"text": "", "problem": f"the file is broken: {type(error).__name__}: {reason}", "line": 0}
        out.write(json.dumps(answer) + "\n")
        out.flush()


def _text(path: Path) -> str:
    from evals.task.reading.html_text import html_text
    from evals.task.reading.pdf import pdf_text

    if path.suffix.lower() not in {".html", ".htm"}:
        return pdf_text(path)
    with opened(path) as file:
        page = file.read()
    if "\0" in page:
        raise FileError("a NUL byte: this is no text", page.count("\n", 0, page.index("\0")) + 1)
    return html_text(page)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
