"""Runs an answer's Python and then the tests of it, with limits. Started by `evals.metrics.code` as `python -I answer.py`.

stdin: a JSON object of `answer` and `tests` (Python), `seconds` and `memory_mib`. stdout: `passed` or `failed`.

Two processes: this one keeps the clock and ends everything that the answer started; the worker, its child, runs the code. Where
the kernel lets an ordinary user have namespaces (Linux, unless a container or a distribution forbids it) the worker has no
network, sees files read-only but for an empty folder in memory, and its processes end with it.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import sys
import types
from contextlib import suppress
from typing import Any, NoReturn

MIB = 2**20
FILE_BYTES = 16 * MIB
FOLDER_BYTES = 64 * MIB
OPEN_FILES = 256
PROCESSES = 128
# From linux/sched.h, linux/mount.h and linux/prctl.h; the number of mount_setattr is the same on all architectures.
NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000  # user, mount, network, process, IPC
PRIVATE, RECURSIVE = 1 << 18, 1 << 14
NO_SUID, NO_DEVICES = 2, 4
MOUNT_SETATTR, HERE, WHOLE_TREE, READ_ONLY = 442, -100, 0x8000, 1
SET_CHILD_SUBREAPER = 36


def main() -> None:
    job = json.load(sys.stdin)
    adopt_orphans()
    isolated = isolate(os.getcwd())
    reading, writing = os.pipe()
    token = os.urandom(16)
    worker = os.fork()
    if worker == 0:
        os.close(reading)
        work(job, isolated, token, writing)
    os.close(writing)
    ended_well = wait(worker, job["seconds"])
    end_all(worker)
    # The token says that the tests were gone through to their end: an answer that leaves early exits with 0 as well.
    passed = ended_well and what_is_in(reading) == token
    os.write(1, b"passed" if passed else b"failed")


def what_is_in(pipe: int) -> bytes:
    """Without waiting: a process that could not be found may hold the other end open."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):
        return os.read(pipe, 64)
    return b""


def work(job: Any, isolated: bool, token: bytes, proof: int) -> NoReturn:
    """Answer and tests are one script. What it prints goes nowhere, and `input()` finds the end of its input."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    limit(job["memory_mib"] * MIB, job["seconds"], isolated)
    script = types.ModuleType("__main__")
    sys.modules["__main__"] = script
    # Kept here, since the answer may put something else in their places.
    execute, write, leave = exec, os.write, sys.exit
    tests = compile(job["tests"], "tests.py", "exec", dont_inherit=True)
    execute(compile(job["answer"], "answer.py", "exec", dont_inherit=True), script.__dict__)
    try:
        execute(tests, script.__dict__)
    except SystemExit as end:
        # `unittest.main()` ends so. An answer's own exit, called by the tests, is none of theirs.
        if end.code not in (0, None) or passes_through("answer.py", end.__traceback__):
            raise
    write(proof, token)
    leave(0)


def passes_through(file: str, trace: types.TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            return True
        trace = trace.tb_next
    return False


def limit(memory: int, seconds: float, isolated: bool) -> None:
    """Of each process: memory, processor time, size of a file, open files. Of all together, where they can be counted: how many."""
    wanted = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    # The kernel counts a user's processes; only in a namespace of its own are these the answer's. (Root is never limited.)
    if isolated and kernel() >= (5, 14):
        wanted[resource.RLIMIT_NPROC] = PROCESSES
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def kernel() -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2])


def isolate(folder: str) -> bool:
    """No network, files read-only, `folder` (and shared memory) in memory, and processes of its own for the next child.

    Each step that is refused is left out; says whether the namespaces were given.
    """
    libc = ctypes.CDLL(None)
    user, group = os.getuid(), os.getgid()
    if not hasattr(libc, "unshare") or libc.unshare(NEW_NAMESPACES) != 0:
        return False
    with suppress(OSError):
        write_text("/proc/self/uid_map", f"{user} {user} 1")
        write_text("/proc/self/setgroups", "deny")
        write_text("/proc/self/gid_map", f"{group} {group} 1")
    libc.mount(None, b"/", None, ctypes.c_ulong(PRIVATE | RECURSIVE), None)
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    libc.syscall(ctypes.c_long(MOUNT_SETATTR), HERE, b"/", WHOLE_TREE, attributes, size)
    for place in (os.fsencode(folder), b"/dev/shm"):
        flags = ctypes.c_ulong(NO_SUID | NO_DEVICES)
        libc.mount(b"tmpfs", place, b"tmpfs", flags, f"size={FOLDER_BYTES},mode=0700".encode())
    # Into the new folder, which lies over the old one.
    os.chdir(folder)
    return True


def write_text(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def adopt_orphans() -> None:
    """Processes whose parents have ended become ours, and not the machine's, so that they can be found and ended."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(SET_CHILD_SUBREAPER, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def wait(worker: int, seconds: float) -> bool:
    """Whether the worker ended in time, and by its own will with 0."""

    def late(*_: Any) -> NoReturn:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        status = os.waitpid(worker, 0)[1]
        signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeoutError:
        return False
    return status == 0


def end_all(worker: int) -> None:
    """Kill the worker's group, and then what is left of our children and theirs, who have been adopted by then."""
    with suppress(ProcessLookupError):
        os.killpg(worker, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            left = children()
            for one in left:
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            # Without a list of children (no Linux) only those are waited for that have ended already.
            if os.waitpid(-1, 0 if left else os.WNOHANG)[0] == 0:
                return


def children() -> list[int]:
    with suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(one) for one in file.read().split()]
    return []


if __name__ == "__main__":
    main()
