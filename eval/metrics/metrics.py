"""Answer metrics: quality of one answer, from 0 to 1, against its references.

An answer is compared with every reference and the best counts; BLEU and chrF take all references at
once, as sacrebleu does. A new metric is one line in `METRICS`.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from caskd.store.errors import UsageError, reason

Normalize = Callable[[str], str]
Score = Callable[[str, Sequence[str], Sequence[str]], float]
"""Quality of an answer from the answer, its references and its options (empty if the question has
none); all of them normalised."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")  # 5-3 is 5 and 3
BLEU = "bleu"


def _as_written(text: str) -> str:
    return text


def _spaces(text: str) -> str:
    return " ".join(text.split())


def _label(text: str) -> str:
    return _spaces(text).strip(string.punctuation + " ").casefold()


def _squad(text: str) -> str:
    """Lower case, no punctuation, no articles (the official SQuAD script)."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _spaces(_ARTICLES.sub(" ", kept))


NORMALIZE: Mapping[str, Normalize] = {
    "none": _as_written,
    "spaces": _spaces,
    "label": _label,
    "squad": _squad,
}
"""Normalisation of answers, references and options before they are compared."""


def exact_match(text: str, references: Sequence[str], _: Sequence[str] = ()) -> float:
    """1.0 if the answer is one of the references, else 0.0."""
    return float(text in references)


def accuracy(text: str, references: Sequence[str], options: Sequence[str]) -> float:
    """1.0 if the option that the answer names is a reference, else 0.0.

    An answer names the option that it equals, or else the longest option that it starts with, up to
    the end of a word: "B. Paris" names "B".
    """
    begun = [option for option in options if re.match(re.escape(option) + r"(?!\w)", text)]
    return float((max(begun, key=len) if begun else text) in references)


def token_f1(text: str, references: Sequence[str], _: Sequence[str] = ()) -> float:
    """Harmonic mean of precision and recall over words, the best over the references (SQuAD)."""
    return max(_word_f1(text.split(), reference.split()) for reference in references)


def _word_f1(words: list[str], expected: list[str]) -> float:
    if not words or not expected:
        return float(words == expected)
    shared = (Counter(words) & Counter(expected)).total()
    return 2.0 * shared / (len(words) + len(expected))


def numeric_match(text: str, references: Sequence[str], _: Sequence[str] = ()) -> float:
    """1.0 if the last number in the answer is the last one in a reference: 1,200.0 is 1200."""
    found = _last_number(text)
    return float(found is not None and found in map(_last_number, references))


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _bleu(tokenizer: str, text: str, references: Sequence[str], _: Sequence[str] = ()) -> float:
    return _share(_sentence_bleu(tokenizer).sentence_score(text, references).score)


def _chrf(text: str, references: Sequence[str], _: Sequence[str] = ()) -> float:
    return _share(_sentence_chrf().sentence_score(text, references).score)


@lru_cache(maxsize=8)
def _sentence_bleu(tokenizer: str) -> Any:
    return bleu_scorer(tokenizer, f"metric {BLEU}-", effective_order=True)


@lru_cache(maxsize=1)
def _sentence_chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _share(score: float) -> float:
    return min(score / 100.0, 1.0)  # a perfect BLEU comes out as 100.00000000000004


@dataclass(frozen=True)
class Metric:
    """A way to score one answer."""

    score: Score
    normalize: str
    """Key of `NORMALIZE`, for tasks that set no other."""


METRICS: dict[str, Metric] = {
    "exact_match": Metric(exact_match, "spaces"),
    "accuracy": Metric(accuracy, "label"),
    "token_f1": Metric(token_f1, "squad"),
    "numeric_match": Metric(numeric_match, "none"),
    "chrf": Metric(_chrf, "none"),
    BLEU: Metric(partial(_bleu, "13a"), "none"),
}
"""By name; BLEU with another tokenizer of sacrebleu is `bleu-TOKENIZER`, such as `bleu-zh`."""


def find_metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
        UsageError: the name is unknown, or files that the metric needs are not installed.
    """
    tokenizer = name.removeprefix(f"{BLEU}-")
    if tokenizer != name:
        _sentence_bleu(tokenizer)  # checked now, before any model runs
        return Metric(partial(_bleu, tokenizer), "none")
    if name not in METRICS:
        known = ", ".join([*METRICS, f"{BLEU}-TOKENIZER (13a, zh, ja-mecab, ...)"])
        raise UsageError(f"metric {name!r}: unknown; expected one of {known}; pass one of them")
    return METRICS[name]


def bleu_scorer(tokenizer: str, needed_by: str = "--bleu ", **options: bool) -> Any:
    """sacrebleu's BLEU with this tokenizer.

    Args:
        tokenizer: name of a sacrebleu tokenizer.
        needed_by: the flag before the tokenizer's name, for messages.
        options: options of sacrebleu's BLEU.

    Raises:
        UsageError: the tokenizer is unknown, or its files are not installed.
    """
    from sacrebleu.metrics.bleu import BLEU

    if tokenizer not in BLEU.TOKENIZERS:
        known = ", ".join(sorted(BLEU.TOKENIZERS))
        raise UsageError(
            f"{needed_by}{tokenizer}: unknown; expected a tokenizer of sacrebleu, one of {known}; "
            "pass one of them"
        )
    try:
        return BLEU(tokenize=tokenizer, force=True, **options)
    except (ImportError, RuntimeError, OSError) as error:
        extra = tokenizer.removesuffix("-mecab")
        how = f"; run pip install 'sacrebleu[{extra}]'" if extra != tokenizer else ""
        raise UsageError(
            f"{needed_by}{tokenizer} needs its sacrebleu files ({reason(error)}){how}"
        ) from None
