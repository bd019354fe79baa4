"""Our engine as a model of lm-eval against lm-eval's own class for transformers models, on hellaswag and blimp.

Both answer the same items of the same task files (`tasks/`), in fp32: the log-likelihoods of every item, acc and acc_norm must be the same
to 1e-3. Then in the dtype that the machine prefers, in turns, for the time.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Bench, bench_data, measured_in_child, skip

from evals.engines.models import DEMO_MODEL
from evals.events import ignore
from evals.general.suites import Suite

TASKS = Path(__file__).resolve().parent / "tasks"
NAMES = ("hellaswag", "blimp")
SAME = 1e-3
HFLM_BATCH = 32
METRICS = ("acc", "acc_norm")


def local_suite(name: str, limit: int, folder: Path) -> Suite:
    """A benchmark of the data folder: its task file is copied to where its rows are linked to."""
    from evals.general.named import suite_of

    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(TASKS / name / f"{name}.yaml", home)
    for path in (bench_data() / name).glob("*.jsonl"):
        link = home / path.name
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    return suite_of(str(home), limit=limit)


def answered(peer: str, name: str, limit: int, dtype: str) -> tuple[list[dict[str, Any]], float]:
    """Each item's log-likelihoods and scores, and the seconds that they took, weights loaded."""
    from lm_eval.models.huggingface import HFLM

    from evals.engines.handle import ModelHandle
    from evals.engines.hf import HfEngine
    from evals.general.fast import fast_lm
    from evals.general.lm_eval import run_task

    handle = ModelHandle(DEMO_MODEL, dtype, ignore)
    engine = HfEngine(handle)
    with tempfile.TemporaryDirectory() as folder:
        (task,) = local_suite(name, limit, Path(folder)).tasks
        if peer == "ours":
            _ = handle.budget  # measured once for a machine, not for each run
            lm = fast_lm(engine, lambda _: None)
        else:
            lm = HFLM(pretrained=handle.base, tokenizer=handle.tokenizer, batch_size=HFLM_BATCH, softmax_dtype="float32")
        started = time.perf_counter()
        _, samples = run_task(lm, task)
        seconds = time.perf_counter() - started
    (rows,) = samples.values()
    kept = [{key: float(row[key]) for key in METRICS if key in row} for row in rows]
    return [{**one, "likelihoods": [ll for ((ll, _),) in row["resps"]]} for one, row in zip(kept, rows, strict=True)], seconds


def compare(bench: Bench, name: str, limit: int, dtype: str, rounds: int) -> None:
    found: dict[str, list[Any]] = {"ours": [], "hflm": []}
    for turn in range(rounds):
        for peer in ("ours", "hflm") if turn % 2 == 0 else ("hflm", "ours"):
            found[peer].append(measured_in_child(answered, peer, name, limit, dtype))
    seconds = {peer: min(one.result[1] for one in runs) for peer, runs in found.items()}
    rows = {peer: runs[0].result[0] for peer, runs in found.items()}
    gap = max(
        abs(a - b)
        for one, other in zip(rows["ours"], rows["hflm"], strict=True)
        for a, b in zip(one["likelihoods"], other["likelihoods"], strict=True)
    )
    means = {
        peer: {key: sum(row[key] for row in ones) / len(ones) for key in METRICS if key in ones[0]}
        for peer, ones in rows.items()
    }
    for peer in found:
        bench.figure(f"{name}.{dtype}.{peer}", {"seconds": round(seconds[peer], 2), **means[peer]})
    bench.figure(f"{name}.{dtype}.largest_difference_of_a_log_likelihood", float(f"{gap:.2g}"))
    bench.figure(f"{name}.{dtype}.times_as_fast", round(seconds["hflm"] / seconds["ours"], 2))
    if dtype == "float32":
        same = all(abs(means["ours"][key] - means["hflm"][key]) <= SAME for key in means["ours"])
        bench.invariant(f"{name}: {len(rows['ours'])} items score as under HFLM in fp32, to {SAME}", gap <= SAME and same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    fast = parser.parse_args().fast
    if not all((bench_data() / name).is_dir() for name in NAMES):
        skip("hellaswag and blimp are not in the data folder")
    bench = Bench("forgetting_parts", fast=fast)
    for name in NAMES:
        compare(bench, name, 24 if fast else 100, "float32", 1)
        if not fast:
            compare(bench, name, 100, "auto", 2)
    bench.finish()


if __name__ == "__main__":
    main()
