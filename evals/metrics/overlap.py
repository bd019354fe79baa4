"""Overlap with a reference text, as summaries and translations are scored: ROUGE-L, BLEU and chrF of one answer.

These are scores of sentences. BLEU and chrF are defined on a whole corpus, whose counts are pooled: the mean of an answer's
BLEU is not the corpus BLEU of papers, and the two must not be compared.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from evals.metrics.text import UNSPACED, fold

WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
# rouge_score fills its table in Python: 10 ms for 200 words against 200. Longer pairs take the same length from rapidfuzz.
ROUGE_CELLS = 40_000


def words(text: str) -> list[str]:
    """What ROUGE compares: runs of letters, digits and marks of any script in lower case, and single signs of Han and kana.

    The library's own tokenizer keeps a-z and 0-9 only, by which every Chinese or Greek answer scores 0. On ASCII both agree.
    """
    plain = "".join(sign if sign.isalnum() or unicodedata.category(sign)[0] == "M" else " " for sign in fold(text))
    return WORD.findall(plain)


def rouge_l(output: str, target: str) -> float:
    """ROUGE-L F1, in [0, 1]: the longest common subsequence of words, against both lengths (Lin 2004). No stemming.

    Texts without any word compare as they stand.
    """
    given, wanted = words(output), words(target)
    if not given or not wanted:
        return float(fold(output) == fold(target))
    if len(given) * len(wanted) <= ROUGE_CELLS:
        return float(_rouge().score(target, output)["rougeL"].fmeasure)
    from rapidfuzz.distance import LCSseq

    return 2 * LCSseq.similarity(given, wanted) / (len(given) + len(wanted))


def bleu(output: str, target: str) -> float:
    """BLEU of the one sentence over 100, in [0, 1]: sacrebleu with its exponential smoothing and effective order.

    Tokens are sacrebleu's `13a`; a target with Han signs takes its `zh`, which parts them (Post 2018, 1804.08771).
    """
    return _over_100(_bleu("zh" if HAN.search(target) else "13a"), output, target)


def chrf(output: str, target: str) -> float:
    """chrF2 of the one sentence over 100, in [0, 1], by sacrebleu: F of character 1- to 6-grams (Popović 2015). Any script."""
    return _over_100(_chrf(), output, target)


def _over_100(scorer: Any, output: str, target: str) -> float:
    # Two empty texts are equal, which sacrebleu scores 0.
    if output.strip() == target.strip():
        return 1.0
    return min(1.0, float(scorer.sentence_score(output, [target]).score) / 100)


class _Words:
    """`words` as rouge_score takes a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


@cache
def _bleu(tokenize: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True, tokenize=tokenize)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
