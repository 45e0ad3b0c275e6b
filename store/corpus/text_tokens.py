"""Token ids of a text that is given up to a border and answered from there on.

The ids are those of the whole text. Where they differ from the given part's own tokenisation, the
given part keeps its own ids, and the rest follows with nothing inserted at the border.

Legend: a *border* is a character position of a text; a *cut* is the index of the first token
that starts there. The caller passes a transformers tokenizer.
"""

import copy
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import PurePath
from typing import Any

from caskd.store.corpus.vocabulary import text_bytes, token_bytes, tokenizer_pipeline
from caskd.store.errors import UsageError

_PROBES = ("a b", "It is", "so it goes", "one\ntwo")


@dataclass(frozen=True)
class CutTokens:
    """Ids of a text, and the cut of each border."""

    ids: list[int]
    cuts: list[int]
    own: bool
    """A given part has its own tokenisation, because a merge would cross its border."""
    exact: bool
    """The bytes of the tokens reproduce the text, and a token starts at each border."""


@lru_cache(maxsize=4)
def text_tokens(tokenizer: Any) -> "TextTokens":
    """The `TextTokens` of a tokenizer, built once.

    Raises:
        UsageError: the bytes of its tokens do not reproduce a text.
    """
    made = TextTokens(tokenizer)
    made.check_bytes()
    return made


def leading_ids(tokenizer: Any) -> list[int]:
    """Ids that a tokenizer adds before a text: BOS, or nothing."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    starts = [n for n in range(len(full)) if full[n : n + len(bare)] == bare]
    return full[: starts[0]] if starts else []


class TextTokens:
    """A tokenizer with the bytes of its tokens, and its variant that inserts no prefix."""

    def __init__(self, tokenizer: Any) -> None:
        """Build the variant of `tokenizer`; its own state is not changed."""
        self._tokenizer = tokenizer
        self._bytes = token_bytes(tokenizer)
        self._unknown = tokenizer.unk_token_id
        added = tokenizer.added_tokens_decoder
        self._added = {i: token for i, token in added.items() if i != self._unknown}
        self.special = tuple(
            sorted(
                {*map(str, tokenizer.all_special_tokens)}
                | {str(token) for token in added.values() if token.special},
                key=lambda text: (-len(text), text),
            )
        )
        safe = [str(t) for t in added.values() if t.special and not (t.lstrip or t.single_word)]
        safe.sort(key=len, reverse=True)
        self._safe = re.compile("|".join(map(re.escape, safe))) if safe else None
        self._variant = _without_prefix(tokenizer)
        self._known: dict[str, list[int]] = {}
        self.leading = leading_ids(tokenizer)

    def check_bytes(self) -> None:
        """Refuse a tokenizer that drops or changes text without its normaliser.

        Raises:
            UsageError: names a text, and the bytes of its tokens.
        """
        for text in _PROBES:
            ids = self.encode(text)
            if self._unknown in ids or not ids or self.reproduces(text, ids, []):
                continue
            joined = b"".join(self._bytes[id_] for id_ in ids)
            raise UsageError(
                f"the tokenizer{self._name()} turns {text!r} into tokens with the bytes "
                f"{joined!r}; expected bytes that reproduce the text, as byte-level BPE or "
                "SentencePiece have: pass a model with such a tokenizer"
            )

    def _name(self) -> str:
        """Model and kind of the tokenizer, for errors."""
        source = PurePath(str(self._tokenizer.name_or_path)).name
        pipeline = tokenizer_pipeline(self._tokenizer)
        kind = type(self._tokenizer).__name__ if pipeline is None else pipeline["model"]["type"]
        return (f" of {source}" if source else "") + f" ({kind})"

    def prime(self, texts: Iterable[str]) -> None:
        """Encode texts with one call of the tokenizer, a quarter of the time of one call each."""
        wanted = list(dict.fromkeys(text for text in texts if text))
        ids = self._tokenizer(wanted, add_special_tokens=False, verbose=False) if wanted else None
        self._known = dict(zip(wanted, ids["input_ids"], strict=True)) if ids else {}

    def encode(self, text: str) -> list[int]:
        """Ids of a fresh text, without special tokens around it."""
        if not text:
            return []
        if text not in self._known:
            found = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return list(found)
        return list(self._known[text])

    def continuation(self, text: str) -> list[int]:
        """Ids of a text that follows another one: nothing is inserted at its start."""
        if self._variant is None or not text:
            return self.encode(text)
        ids: list[int] = self._variant.encode(text, add_special_tokens=False).ids
        # Behind an added token inside the text, the tokenizer itself inserts its prefix again.
        first = next((n for n, id_ in enumerate(ids) if id_ in self._added), None)
        at = -1 if first is None else text.find(str(self._added[ids[first]]))
        return ids if at < 0 else [*ids[:first], *self.encode(text[at:])]

    def texts_of(self, text: str, borders: Sequence[int]) -> list[str]:
        """The texts that `cut` encodes, for `prime`."""
        pieces = self._pieces(text, borders)
        given = [text[a:border] for a, b in pieces for border in borders if a < border <= b]
        return [text, *(text[a:b] for a, b in pieces), *given]

    def cut(self, text: str, borders: Sequence[int]) -> CutTokens:
        """Ids of a text and the cuts of its borders, which ascend."""
        pieces = self._pieces(text, borders)
        if [id_ for a, b in pieces for id_ in self.encode(text[a:b])] != self.encode(text):
            pieces = [(0, len(text))]
        ids: list[int] = []
        cuts, own = [0] * sum(border == 0 for border in borders), False
        for a, b in pieces:
            inside = [border - a for border in borders if a < border <= b]
            part, found, forced = self._cut_piece(text[a:b], inside)
            cuts += [len(ids) + cut for cut in found]
            ids, own = ids + part, own or forced
        exact = self.reproduces(text, ids, list(zip(borders, cuts, strict=True)))
        return CutTokens(ids, cuts, own, exact)

    def _pieces(self, text: str, borders: Sequence[int]) -> list[tuple[int, int]]:
        """Parts of a text that are tokenised apart: each starts at a special token."""
        edges = [0]
        if self._safe is not None:
            starts = [match.start() for match in self._safe.finditer(text)]
            for border in borders:
                before = [start for start in starts if edges[-1] < start < border]
                edges += before[-1:]
        return list(pairwise([*edges, len(text)]))

    def _cut_piece(self, text: str, borders: Sequence[int]) -> tuple[list[int], list[int], bool]:
        encode, start = self.encode, 0
        ids: list[int] = []
        cuts, own, rest = [], False, encode(text)
        for border in borders:
            given = encode(text[start:border])
            if rest[: len(given)] == given:
                cuts.append(len(ids) + len(given))
                continue
            ids, own, start, encode = ids + given, True, border, self.continuation
            rest = encode(text[start:])
            cuts.append(len(ids))
        return ids + rest, cuts, own

    def has_unknown(self, ids: Sequence[int]) -> bool:
        """Whether one of the tokens stands for text that the vocabulary lacks."""
        return self._unknown is not None and self._unknown in ids

    def reproduces(self, text: str, ids: Sequence[int], cuts: Sequence[tuple[int, int]]) -> bool:
        """Whether the tokens' bytes are the (normalised) text, and each cut lies at its border.

        A prefix that the tokenizer inserts at the start of the text or behind an added token is no
        byte of the text. A run of tokens with an unknown one is not checked.
        """
        found: dict[int, set[int]] = {border: set() for border, _ in cuts}
        for start, stop, first, last in self._runs(text, ids):
            if start < 0:
                return False
            run = [self._bytes[id_] for id_ in ids[first:last]]
            got, want = b"".join(run), self._text_bytes(text[start:stop])
            inserted = got != want and got == b" " + want
            unknown = self._unknown in ids[first:last]
            if got != want and not inserted and not unknown:
                return False
            ends = [0, *accumulate(map(len, run))]
            for border, cut in cuts:
                if border <= start and first == cut:
                    found[border].add(cut)
                elif start < border <= stop:
                    given = self._text_bytes(text[start:border])
                    at = ends[cut - first] if first <= cut <= last else -1
                    if unknown or (at == len(given) + inserted and want.startswith(given)):
                        found[border].add(cut)
        return all(cut in found[border] for border, cut in cuts)

    def _runs(self, text: str, ids: Sequence[int]) -> Iterable[tuple[int, int, int, int]]:
        """Runs between added tokens: characters and tokens, each as start and stop.

        A start of -1 means that the text lacks an added token.
        """
        position = first = 0
        for n, id_ in enumerate(ids):
            token = self._added.get(id_)
            if token is None:
                continue
            at = text.find(str(token), position)
            if at < 0:
                yield -1, -1, first, n
                return
            stop = len(text[:at].rstrip()) if token.lstrip else at
            yield position, max(stop, position), first, n
            position, first = at + len(str(token)), n + 1
            if token.rstrip:
                position = len(text) - len(text[position:].lstrip())
        yield position, len(text), first, len(ids)

    def _text_bytes(self, text: str) -> bytes:
        return text_bytes(self._tokenizer, self._variant, text)


def _without_prefix(tokenizer: Any) -> Any:
    """The fast tokenizer with no prefix before a text; None for one written in Python."""
    pipeline = tokenizer_pipeline(tokenizer)
    if pipeline is None:
        return None
    from tokenizers import Tokenizer

    pipeline = copy.deepcopy(pipeline)
    for part in ("normalizer", "pre_tokenizer"):
        pipeline[part] = _drop_prefix(pipeline[part])
    return Tokenizer.from_str(json.dumps(pipeline))


def _drop_prefix(stage: dict[str, Any] | None) -> dict[str, Any] | None:
    if stage is None or stage["type"] == "Prepend":
        return None
    stage = dict(stage)
    for name in ("normalizers", "pretokenizers"):
        if name in stage:
            kept = [_drop_prefix(part) for part in stage[name]]
            stage[name] = [part for part in kept if part is not None]
    if "prepend_scheme" in stage:
        stage["prepend_scheme"] = "never"
    if "add_prefix_space" in stage:
        stage["add_prefix_space"] = False
    return stage
