"""Greedy generation through our engine against plain `model.generate` and lm-eval's HFLM: same prompts, same weights, same dtype.

`banking77` has a long instruction that all prompts share and short answers; `gsm8k` has short prompts and long answers. Each peer
runs in a process of its own, in turns, so that times and peak memory are its own. In fp32 the answers must be identical; in bf16,
where the shape of a batch moves the last bits, the agreement and the paired difference of the scores are reported.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from typing import Any

from harness import Bench, bench_data, measured_in_child, skip

from evals.engines.engine import Message, Request
from evals.engines.models import DEMO_MODEL
from evals.events import ignore
from evals.metrics.text import normalise
from evals.statistics.paired import paired_difference

PEERS = ("ours", "generate_batch_8", "hflm_64")
SETS = ("banking77", "gsm8k")
# What `batch_size="auto"` begins with. The search itself is left out of the peer's time: on a CPU it would read 64 rows of the
# model's whole context (8,192 tokens) five times before the first answer, and hold 50 GB of logits.
HFLM_BATCH = 64
NEW_TOKENS = {"banking77": 16, "gsm8k": 256}
GOALS = {("banking77", "generate_batch_8"): 3.0, ("banking77", "hflm_64"): 2.0, ("gsm8k", "generate_batch_8"): 1.5}
GOALS[("gsm8k", "hflm_64")] = 1.5


def rows(name: str, split: str = "test") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (bench_data() / name / f"{split}.jsonl").open(encoding="utf-8")]


def requests(name: str, count: int) -> tuple[list[Request], list[str]]:
    """The first rows, spread over the file, as chat requests with their targets."""
    every = rows(name)
    chosen = every[:: max(1, len(every) // count)][:count]
    if name == "gsm8k":
        asked = [(Message("user", row["question"]),) for row in chosen]
        targets = [row["answer"].rsplit("####", 1)[-1].strip() for row in chosen]
    else:
        labels = sorted({row["output"] for row in every})
        instruction = "Name the intent of the customer's message. Answer with one of these names only:\n" + "\n".join(labels)
        asked = [(Message("user", f"{instruction}\n\nMessage: {row['input']}"),) for row in chosen]
        targets = [row["output"] for row in chosen]
    return [Request(str(at), one, NEW_TOKENS[name]) for at, one in enumerate(asked)], targets


def right(name: str, text: str, target: str) -> float:
    """A tolerant reading of the answer: the label mentioned, or the last number."""
    if name == "gsm8k":
        numbers = re.findall(r"-?\d[\d,]*\.?\d*", text)
        return float(bool(numbers) and numbers[-1].replace(",", "").rstrip(".") == target.replace(",", ""))
    return float(normalise(target.replace("_", " ")) in normalise(text.replace("_", " ")))


def answer(peer: str, name: str, count: int, dtype: str) -> tuple[list[str], float, int, str]:
    """The peer's answers in order, the seconds that they took (loading and a small warm-up not counted), tokens, device."""
    import torch

    from evals.engines.handle import ModelHandle
    from evals.engines.hf import HfEngine

    asked, _ = requests(name, count)
    handle = ModelHandle(DEMO_MODEL, dtype, ignore)
    engine = HfEngine(handle)
    model, tokenizer = handle.base, handle.tokenizer
    if peer == "ours":
        list(engine.generate([Request("warm", (Message("user", "Hello."),), 2)] * 2))
        _ = handle.budget  # measured once for a machine, not for each run
        started = time.perf_counter()
        found = {response.id: response for response in engine.generate(asked)}
        seconds = time.perf_counter() - started
        tokens = sum(response.output_tokens for response in found.values())
        return [found[request.id].text for request in asked], seconds, tokens, handle.device
    prompts = [engine.prompt_text(request.messages) for request in asked]
    with torch.inference_mode():
        model.generate(**tokenizer("Hello.", return_tensors="pt").to(handle.device), max_new_tokens=2, do_sample=False)
    if peer == "generate_batch_8":
        started = time.perf_counter()
        texts = plain(model, tokenizer, prompts, NEW_TOKENS[name], handle)
    else:
        lm, instances = hflm(model, tokenizer, prompts, NEW_TOKENS[name])
        started = time.perf_counter()
        texts = lm.generate_until(instances, disable_tqdm=True)
    seconds = time.perf_counter() - started
    return texts, seconds, sum(engine.count_tokens(texts)), handle.device


def plain(model: Any, tokenizer: Any, prompts: list[str], limit: int, handle: Any) -> list[str]:
    import torch

    texts = []
    for start in range(0, len(prompts), 8):
        given = tokenizer(prompts[start : start + 8], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(
                **given.to(handle.device),
                max_new_tokens=limit,
                do_sample=False,
                repetition_penalty=1.0,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=handle.stop_ids,
            )
        texts += tokenizer.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def hflm(model: Any, tokenizer: Any, prompts: list[str], limit: int) -> tuple[Any, list[Any]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    settings = {"until": [tokenizer.eos_token], "max_gen_toks": limit, "do_sample": False, "repetition_penalty": 1.0}
    instances = [
        Instance("generate_until", {}, (prompt, dict(settings)), at, metadata=("bench", at, 1))
        for at, prompt in enumerate(prompts)
    ]
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=HFLM_BATCH), instances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    fast = parser.parse_args().fast
    if not (bench_data() / "banking77").is_dir() or not (bench_data() / "gsm8k").is_dir():
        skip("banking77 and gsm8k are not in the data folder")
    bench = Bench("generate", fast=fast)
    for name in SETS:
        equal_in_fp32(bench, name, 8 if fast else 32)
        speed(bench, name, 32 if fast else 256, 1 if fast or name == "gsm8k" else 2)
    bench.finish()


def equal_in_fp32(bench: Bench, name: str, count: int) -> None:
    texts = {peer: measured_in_child(answer, peer, name, count, "float32").result[0] for peer in PEERS}
    for peer in PEERS[1:]:
        # HFLM strips nothing, but it cuts at its stop string: trailing blanks are no difference.
        same = sum(one.strip() == two.strip() for one, two in zip(texts["ours"], texts[peer], strict=True))
        bench.figure(f"{name}.fp32_identical_to_{peer}", f"{same} of {count}")
        bench.invariant(f"{name}: in fp32 the answers are those of {peer}", same == count)


def speed(bench: Bench, name: str, count: int, rounds: int) -> None:
    found: dict[str, list[Any]] = {peer: [] for peer in PEERS}
    for turn in range(rounds):
        for peer in PEERS[turn % 3 :] + PEERS[: turn % 3]:
            found[peer].append(measured_in_child(answer, peer, name, count, "auto"))
    targets = requests(name, count)[1]
    seconds = {peer: min(one.result[1] for one in runs) for peer, runs in found.items()}
    scores = {
        peer: [right(name, text, target) for text, target in zip(runs[0].result[0], targets, strict=True)]
        for peer, runs in found.items()
    }
    for peer, runs in found.items():
        texts, _, tokens, device = runs[0].result
        bench.figure(
            f"{name}.{peer}",
            {
                "seconds": round(seconds[peer], 2),
                "output_tokens_per_second": round(tokens / seconds[peer]),
                "peak_memory_mib": round(max(one.peak_mib for one in runs)),
                "score": round(sum(scores[peer]) / count, 3),
                "device": device,
            },
        )
        if peer != "ours":
            same = sum(one.strip() == two.strip() for one, two in zip(found["ours"][0].result[0], texts, strict=True))
            bench.figure(f"{name}.{peer}.agreement", f"{same} of {count} answers equal")
            found_difference = paired_difference(scores["ours"], scores[peer])
            words = f"{100 * found_difference.estimate:+.1f} [{100 * found_difference.low:+.1f}, {100 * found_difference.high:+.1f}]"
            bench.figure(f"{name}.{peer}.paired_difference_points", words)
            ratio = seconds[peer] / seconds["ours"]
            goal = GOALS[name, peer]
            bench.goal(f"{name}: times as fast as {peer}", goal, round(ratio, 2), ratio >= goal)


if __name__ == "__main__":
    main()
