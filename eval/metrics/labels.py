"""Which option an answer names: signs that carry meaning are never stripped.

`<` is not `>`, `-1` is not `1`, `C++` is not `C` and `$50` is not `50%`. Only what sentences and
Markdown put around a word is: quotes, closed brackets, emphasis, and the punctuation at its end.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"
_ENDS = ".,:;!?\u2026\u3001\u3002"
_LAYERS = 5
"""Wrappings of one label, such as the quote, the emphasis and the bracket of "**(B)**"."""
_MARGIN = 200
"""Characters of an answer that are read beyond those of the longest candidate."""
_BULLET = re.compile(r"(?:#+|[-*\u2022])\s+(?=[^\W\d])")
_PAIRS = {"(": ")", "[": "]", "{": "}", "\u3010": "\u3011", r"\(": r"\)"}
_LATEX = r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s?\{"
_INSIDE = r"([\w\s'./&+-]+?)"
_BRACKETED = [
    re.compile(start + _INSIDE + end)
    for start, end in [*((re.escape(a), re.escape(b)) for a, b in _PAIRS.items()), (_LATEX, r"\}")]
]
_MARKED = [
    re.compile(re.escape(mark) + r"(\S(?:.*?\S)?)" + re.escape(mark))
    for mark in ("**", "*", "__", "$")
]
_SEPARATOR = re.compile(rf"[{_QUOTES}*\])}}\u3011]*(?:[{_ENDS}\u2014]|[)\]\u3011]|\s-\s|$)(?!\d)")
_JOINER = re.compile(r"\s*(?:[,/&+|]|\b(?:and|or)\b|[^\S\n])\s*")
_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x2212: "-"}
"""Full-width signs, letters and digits, and the minus sign, as those of ASCII."""
_WORD_END = re.compile(rf"\s|[{_QUOTES}*]+(?:\s|$)")


def spaced(text: str) -> str:
    """One case, single spaces, and one code point for each letter and sign, however written."""
    text = unicodedata.normalize("NFC", text.translate(_WIDE))
    return " ".join(text.split()).casefold()


def label(text: str) -> str:
    """A text without what a sentence puts around a label; a text of nothing else stays as it is."""
    text = spaced(text)
    for _ in range(_LAYERS):
        text = _unwrapped(text) or text
    return text


def _unwrapped(text: str) -> str:
    text = _BULLET.sub("", text, count=1) if _BULLET.match(text) else text
    text = text.strip(_QUOTES + " ") or text
    text = _without_end(text)
    for pattern in (*_BRACKETED, *_MARKED):
        whole = pattern.fullmatch(text)
        if whole is not None:
            return whole[1].strip()
    if re.fullmatch(r"[^(]*\w\)", text):  # a) as a label
        return text[:-1]
    return text


def _without_end(text: str) -> str:
    """Without the punctuation that ends a sentence, unless nothing else is left."""
    return text.rstrip(_ENDS + " ") or text


def named(text: str, candidates: Iterable[str], *, closed: bool) -> str | None:
    """The candidate that an answer names; None if it names none, or two alike.

    An answer names the candidate that it equals, as written or without what surrounds it, or else
    the longest with which it begins, unless another follows: "A or B" and "A, B" name none.

    Args:
        text: the answer.
        candidates: the options, or without options the references.
        closed: whether the candidates are all options. Then a space may follow the candidate in
            the answer; else punctuation or the end must, because "A cat" does not name "A".
    """
    names = dict.fromkeys(candidates)
    text = text.lstrip()[: max(map(len, names), default=0) + _MARGIN]
    for form in (spaced, label):
        equal = [name for name in names if form(name) == form(text)]
        if equal:
            return equal[0] if len({spaced(name) for name in equal}) == 1 else None
    begun = [name for name in names if _begins(text, name, closed)]
    longest = max((len(label(name)) for name in begun), default=0)
    best = {spaced(name): name for name in begun if len(label(name)) == longest}
    if len(best) != 1:
        return None
    (found,) = best.values()
    others = [name for name in names if label(name) != label(found)]
    return None if closed and _also_names(text, found, others) else found


def _begins(text: str, name: str, closed: bool) -> bool:
    """Whether an answer begins with a label, up to the end of a word."""
    ends = (_SEPARATOR, _WORD_END) if closed else (_SEPARATOR,)
    return any(end.match(rest) for rest in _rests(text, name) for end in ends)


def _also_names(text: str, name: str, others: Iterable[str]) -> bool:
    """Whether a second label follows the first in its line, and ends there or at punctuation."""
    line = text.strip().splitlines()[0]
    joined = [(rest, _JOINER.match(rest)) for rest in _rests(line, name)]
    follows = [rest[joiner.end() :] for rest, joiner in joined if joiner]
    return any(_begins(rest, other, closed=False) for rest in follows for other in others)


def _rests(text: str, name: str) -> list[str]:
    """What follows a label at the start of an answer, or of its first line."""
    lines = dict.fromkeys((text, *text.strip().splitlines()[:1]))
    openings = [opening for line in lines for opening in _openings(spaced(line))]
    starts = {spaced(name), label(name)} - {""}
    return [begin[len(s) :] for s in starts for begin in openings if begin.startswith(s)]


def _openings(text: str) -> Iterator[str]:
    """The answer as written, and without a bullet, quote, bracket or emphasis at its start."""
    yield text
    text = _BULLET.sub("", text, count=1) if _BULLET.match(text) else text
    text = text.lstrip(_QUOTES + " ")
    yield text
    for pattern in (*_BRACKETED, *_MARKED):
        start = pattern.match(text)
        if start is not None:
            yield f"{label(start[1])}. {text[start.end() :]}"
