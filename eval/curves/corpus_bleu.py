"""Corpus BLEU along a deferral curve.

Corpus BLEU is not a mean over examples: it is computed from n-gram counts summed over the corpus.
Each answer is counted once; each point of the curve sums the counts of the kept small answers and
of the large answers to the rest, and sacrebleu turns the sums into a score.

Legend: E examples, P points of a curve, C counts per answer: lengths, matches and totals by order.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.curves.deferral import defer_order
from caskd.eval.metrics import bleu_scorer
from caskd.store.spacing import thin

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_POINTS = 1001


def ngram_counts(
    answers: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str
) -> IntArray:
    """Counts [E, C] of every answer against its references.

    Args:
        answers: [E] answers of a model.
        references: [E] accepted answers, one or more each.
        tokenizer: a tokenizer of sacrebleu, such as `13a`, `zh` or `char`.

    Raises:
        UsageError: sacrebleu has no such tokenizer, or its files are not installed.
    """
    bleu = bleu_scorer(tokenizer)
    rows = []
    for answer, expected in zip(answers, references, strict=True):
        found = bleu.corpus_score([answer], [[text] for text in expected])
        rows.append([found.sys_len, found.ref_len, *found.counts, *found.totals])
    return np.array(rows, dtype=np.int64)


def bleu_curve(
    score: FloatArray, small: IntArray, large: IntArray, tokenizer: str
) -> tuple[FloatArray, FloatArray]:
    """Deferral rates and the cascade's corpus BLEU there, from 0 to 100.

    Equal scores are one block. Curves of more than `MAX_POINTS` points are thinned evenly.

    Args:
        score: [E] deferral score.
        small: [E, C] counts of the small model's answers.
        large: [E, C] counts of the large model's.
        tokenizer: the tokenizer of the counts.
    """
    bleu = bleu_scorer(tokenizer)
    order, ends = defer_order(score)
    moved = np.cumsum((large - small)[order], axis=0)
    sums = small.sum(axis=0) + np.concatenate((np.zeros_like(moved[:1]), moved))[ends]
    points = thin(ends.size, MAX_POINTS)
    values = [_value(bleu, sums[point]) for point in points]
    return ends[points] / score.size, np.array(values)


def _value(bleu: Any, counts: IntArray) -> float:
    orders = bleu.max_ngram_order
    sys_len, ref_len, *rest = counts.tolist()
    found = bleu.compute_bleu(
        correct=rest[:orders],
        total=rest[orders:],
        sys_len=sys_len,
        ref_len=ref_len,
        smooth_method=bleu.smooth_method,
        smooth_value=bleu.smooth_value,
        max_ngram_order=orders,
    )
    return float(found.score)
