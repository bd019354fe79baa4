"""Log-likelihoods of given endings: our trees of continuations against lm-eval's HFLM on the same token ids.

`hellaswag` has four long endings of one context, `blimp` pairs of sentences that differ in a word. In fp32 the scores must be the
same to 1e-3; in the dtype that the machine prefers, the paired difference of the accuracies is reported.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from harness import Bench, bench_data, measured_in_child, skip

from evals.engines.models import DEMO_MODEL
from evals.engines.scoring import Choices
from evals.events import ignore
from evals.statistics.paired import paired_difference

SETS = ("hellaswag", "blimp")
GOALS = {"hellaswag": 2.0, "blimp": 1.2}
# In bf16 on a CPU it takes HFLM 0.6 times as long as batch 8.
HFLM_BATCH = 32
SAME = 1e-3


def items(name: str, count: int) -> list[tuple[str, list[str], int]]:
    """(context, endings, place of the right one)."""
    if name == "hellaswag":
        rows = [json.loads(line) for line in (bench_data() / name / "validation.jsonl").open(encoding="utf-8")][:count]
        return [(row["ctx"], [" " + one for one in row["endings"]], row["label"]) for row in rows]
    found = []
    files = sorted((bench_data() / name).glob("*.jsonl"))
    for path in files:
        rows = [json.loads(line) for line in path.open(encoding="utf-8")][: -(-count // len(files))]
        found += [("", [row["sentence_good"], row["sentence_bad"]], 0) for row in rows]
    return found[:count]


def answer(peer: str, name: str, count: int, dtype: str) -> tuple[list[list[float]], float]:
    """Each item's log-likelihoods, and the seconds with tokenising."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from evals.engines.handle import ModelHandle
    from evals.engines.hf import HfEngine

    handle = ModelHandle(DEMO_MODEL, dtype, ignore)
    engine = HfEngine(handle)
    asked = items(name, count)
    lm = HFLM(pretrained=handle.base, tokenizer=handle.tokenizer, batch_size=HFLM_BATCH)
    warm = [Instance("loglikelihood", {}, ("The sky is", " blue."), 0)]
    lm.loglikelihood(warm, disable_tqdm=True)
    if peer == "hflm":
        flat = [
            Instance("loglikelihood", {}, (context, ending), at)
            for context, endings, _ in asked
            for at, ending in enumerate(endings)
        ]
        started = time.perf_counter()
        values = iter(lm.loglikelihood(flat, disable_tqdm=True))
        seconds = time.perf_counter() - started
        return [[next(values)[0] for _ in endings] for _, endings, _ in asked], seconds
    list(engine.likelihoods([Choices((1,), ((2,), (3,)))]))
    _ = handle.budget  # measured once for a machine, not for each run
    started = time.perf_counter()
    found = dict(engine.likelihoods([choices(lm, context, endings) for context, endings, _ in asked]))
    seconds = time.perf_counter() - started
    return [[one.logprob for one in found[at]] for at in range(len(asked))], seconds


def choices(lm: Any, context: str, endings: list[str]) -> Choices:
    """The token ids that HFLM would score."""
    if not context:
        return Choices((lm.prefix_token_id,), tuple(tuple(lm.tok_encode(one, add_special_tokens=False)) for one in endings))
    pairs = [lm._encode_pair(context, one) for one in endings]
    return Choices(tuple(pairs[0][0]), tuple(tuple(ending) for _, ending in pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    fast = parser.parse_args().fast
    if not all((bench_data() / name).is_dir() for name in SETS):
        skip("hellaswag and blimp are not in the data folder")
    bench = Bench("loglikelihood", fast=fast)
    for name in SETS:
        for dtype in ("float32", "auto"):
            compare(bench, name, 40 if fast else 500, dtype, 2 if dtype == "auto" and not fast else 1)
    bench.finish()


def compare(bench: Bench, name: str, count: int, dtype: str, rounds: int) -> None:
    found: dict[str, list[Any]] = {"ours": [], "hflm": []}
    for turn in range(rounds):
        for peer in ("ours", "hflm") if turn % 2 == 0 else ("hflm", "ours"):
            found[peer].append(measured_in_child(answer, peer, name, count, dtype))
    seconds = {peer: min(one.result[1] for one in runs) for peer, runs in found.items()}
    values = {peer: runs[0].result[0] for peer, runs in found.items()}
    right = [place for _, _, place in items(name, count)]
    scores = {
        peer: [float(one.index(max(one)) == at) for one, at in zip(all_, right, strict=True)] for peer, all_ in values.items()
    }
    gap = max(
        abs(a - b) for one, two in zip(values["ours"], values["hflm"], strict=True) for a, b in zip(one, two, strict=True)
    )
    for peer, runs in found.items():
        bench.figure(
            f"{name}.{dtype}.{peer}",
            {
                "seconds": round(seconds[peer], 2),
                "items_per_second": round(count / seconds[peer], 1),
                "peak_memory_mib": round(max(one.peak_mib for one in runs)),
                "accuracy": round(sum(scores[peer]) / count, 4),
            },
        )
    bench.figure(f"{name}.{dtype}.largest_difference_of_a_log_likelihood", float(f"{gap:.2g}"))
    if dtype == "float32":
        bench.invariant(f"{name}: in fp32 the scores are HFLM's to {SAME}", gap <= SAME)
    paired = paired_difference(scores["ours"], scores["hflm"])
    words = f"{100 * paired.estimate:+.1f} [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]"
    bench.figure(f"{name}.{dtype}.accuracy_minus_hflm_points", words)
    ratio = seconds["hflm"] / seconds["ours"]
    bench.goal(f"{name}, {dtype}: times as fast as HFLM", GOALS[name], round(ratio, 2), ratio >= GOALS[name])


if __name__ == "__main__":
    main()
