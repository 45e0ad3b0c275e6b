"""Answer metrics: quality of one answer, from 0 to 1, against its references.

An answer is compared with every reference and the best counts; BLEU and chrF take all references at
once, as sacrebleu does. A new metric is one line in `METRICS`.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from caskd.eval.metrics.labels import label, named
from caskd.eval.metrics.numbers import last_number
from caskd.store.errors import UsageError, reason

Normalize = Callable[[str], str]
Score = Callable[[str, Sequence[str], Sequence[str]], float]
"""Quality of an answer from the answer, its references and its options (empty if the question has
none); all of them normalised."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
BLEU = "bleu"
_SHOWN = 6


def _as_written(text: str) -> str:
    return text


def _spaces(text: str) -> str:
    """Single spaces, and one code point for each letter, however its accents are written."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _squad(text: str) -> str:
    """Lower case, no punctuation, no articles (the official SQuAD script)."""
    return _spaces(_ARTICLES.sub(" ", _words(text)))


def _words(text: str) -> str:
    """As `_squad`, with articles."""
    return _spaces("".join(letter for letter in text.lower() if letter not in string.punctuation))


NORMALIZE: Mapping[str, Normalize] = {
    "none": _as_written,
    "spaces": _spaces,
    "label": label,
    "squad": _squad,
}
"""Normalisation of answers, references and options before they are compared."""
_WEAKER: Mapping[str, Sequence[Normalize]] = {"squad": (_words,)}
"""Normalisations that keep more, for a reference of which nothing would be left."""


def exact_match(text: str, references: Sequence[str], _: Sequence[str] = ()) -> float:
    """1.0 if the answer is one of the references, else 0.0."""
    return float(text in references)


def accuracy(text: str, references: Sequence[str], options: Sequence[str]) -> float:
    """1.0 if the option that the answer names is a reference, else 0.0.

    An answer names the option that it equals, or else the longest option that it starts with, up to
    the end of a word: "B. Paris" names "B". Without options, punctuation must follow the word.

    Raises:
        UsageError: no reference is an option.
    """
    if not options:
        return float(named(text, references, closed=False) is not None)
    right = right_options(references, options)
    return float(named(text, [*options, *references], closed=True) in right)


def right_options(references: Sequence[str], options: Sequence[str]) -> set[str]:
    """References, and the options that they name.

    Raises:
        UsageError: no reference names an option, so that no answer could be right.
    """
    meant = {named(reference, options, closed=False) for reference in references} - {None}
    if not meant:
        raise UsageError(
            f"reference {references[0]!r} is none of the options "
            f"{', '.join(map(repr, options[:_SHOWN]))}{', ...' if len(options) > _SHOWN else ''}; "
            "expected one of them, so fix the data or --options-column"
        )
    return {*references, *(option for option in meant if option is not None)}


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
    found = last_number(text)
    return float(found is not None and found in map(last_number, references))


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
    "accuracy": Metric(accuracy, "none"),
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


def score_answer(
    metric: str,
    normalize: str | None,
    text: str,
    references: Sequence[str],
    options: Sequence[str] = (),
) -> float:
    """Quality of one answer, from 0 to 1.

    A reference that the normalisation would empty ("A" loses its article, "?" its punctuation)
    is compared by a weaker one, at last by white space and case alone. An empty answer thus equals
    no reference but an empty one.

    Args:
        metric: name of the metric.
        normalize: key of `NORMALIZE`; None for the metric's own.
        text: the answer.
        references: accepted answers.
        options: options of the question, if it has some.
    """
    found = find_metric(metric)
    name = normalize or found.normalize
    levels = [_level(name, reference) for reference in references]
    if all(level is levels[0] for level in levels):
        return _scored(found, levels[0], text, references, options)
    pairs = zip(levels, references, strict=True)
    return max(_scored(found, level, text, [only], options) for level, only in pairs)


def _level(name: str, reference: str) -> Normalize:
    """The first normalisation that leaves something of a reference."""
    whole = NORMALIZE[name]
    if name == "none":
        return whole
    return next((form for form in (whole, *_WEAKER.get(name, ())) if form(reference)), _as_spaced)


def _as_spaced(text: str) -> str:
    return _spaces(text).casefold()


def _scored(
    metric: Metric,
    level: Normalize,
    text: str,
    references: Sequence[str],
    options: Sequence[str],
) -> float:
    return metric.score(level(text), [*map(level, references)], [*map(level, options)])


def check_references(metric: str, references: Sequence[str], options: Sequence[str] = ()) -> None:
    """Refuse references that no answer could match.

    Raises:
        UsageError: no reference is an option of an `accuracy` question, or holds a number for
            `numeric_match`.
    """
    if metric == "accuracy" and options:
        right_options(references, options)
    if metric == "numeric_match" and not any(map(last_number, references)):
        raise UsageError(
            f"reference {references[0][:60]!r} holds no number, expected one for numeric_match; "
            "fix the data, or pass --task-metric NAME=exact_match"
        )


def is_known(name: str) -> bool:
    """Whether caskd has a metric of this name, whose quality is from 0 to 1."""
    return name in METRICS or name.startswith(f"{BLEU}-")


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
