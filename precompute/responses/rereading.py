"""The text that is written for an answer, read back as a capture will read it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from caskd.models.decoding import answer_text
from caskd.precompute.responses.questions import TEXT_DIFFERS, answered
from caskd.precompute.responses.writing import (
    LENGTH_DIFFERS,
    RETOKENIZED,
    Response,
)
from caskd.store.corpus import (
    ChatOptions,
    Columns,
    Record,
    TextOptions,
    special_tokens,
    token_bytes,
    tokenize_examples,
)
from caskd.store.errors import UsageError

_MOST_FORMS = 4


@dataclass(frozen=True)
class Rereading:
    """Chooses the text of each answer, and compares it with what was generated.

    Attributes:
        tokenizer: of the model.
        records: the corpus.
        columns: where its questions stand.
        chat: how conversations are rendered.
        bytes_of: what each token spells, by id; special ones spell no text.
    """

    tokenizer: Any
    records: Sequence[Record]
    columns: Columns
    chat: ChatOptions
    bytes_of: Sequence[bytes]

    @classmethod
    def of(
        cls, tokenizer: Any, records: Sequence[Record], columns: Columns, chat: ChatOptions
    ) -> "Rereading":
        """For the answers to a corpus."""
        spelled = token_bytes(tokenizer)
        for id_ in special_tokens(tokenizer)["special_ids"]:
            spelled[id_] = b"\0%d\0" % id_  # its letters are another text
        return cls(tokenizer, records, columns, replace(chat, turns="last"), spelled)

    def generated(self, index: int, new_ids: Sequence[int], stop_ids: Sequence[int]) -> Response:
        """The answer to a record, from its new tokens and the ids that end an answer."""
        finished = bool(new_ids) and new_ids[-1] in stop_ids
        own = list(new_ids[:-1] if finished else new_ids)
        text = answer_text(self.tokenizer, own)
        same: list[str] = []
        for form in _forms(text):
            rows = self._rows(index, form, finished)
            if not self._same_text(rows, own, finished):
                continue
            if rows[: len(own)] == own[: len(rows)]:
                return Response(form, finished, counts={TEXT_DIFFERS: 0, RETOKENIZED: 0})
            same.append(form)
        counts = {TEXT_DIFFERS: int(not same), RETOKENIZED: int(bool(same))}
        return Response((same or [text])[0], finished, counts=counts)

    def served(self, index: int, answer: Response, num_tokens: int) -> Response:
        """A server's answer, of which the number of tokens is known."""
        text = answer.text.rstrip("\ufffd")
        written = int(self.columns.kind == "messages")  # the end, by the template
        # Most servers count the end; a cut answer may lose three tokens of a character.
        expected = (1 - written, -written) if answer.finished else range(4)
        forms = _forms(text)
        found = [num_tokens - len(self._rows(index, form, answer.finished)) for form in forms]
        same = next((found.index(more) for more in expected if more in found), None)
        counts = {LENGTH_DIFFERS: int(same is None and not answer.refused)}
        return replace(answer, text=forms[same or 0], counts=counts)

    def _rows(self, index: int, text: str, finished: bool) -> list[int]:
        """The response tokens of the record with this text; none where it cannot be captured."""
        record = answered(self.records[index], self.columns, text, finished)
        options = TextOptions(
            eos=False, max_length=sys.maxsize, chat=self.chat, keep_unfinished=True
        )
        try:
            found = tokenize_examples(self.tokenizer, [record], self.columns, options, index)[0]
        except UsageError:
            return []
        rows: list[int] = found.token_ids[found.is_response == 1].tolist()
        return rows

    def _same_text(self, rows: Sequence[int], own: Sequence[int], finished: bool) -> bool:
        """Whether rows have the bytes of an answer; behind it a template may write an end.

        An answer that was cut may lose the beginning of a character, and white space, at its end.
        """
        found, wanted = (b"".join(self.bytes_of[id_] for id_ in ids) for ids in (rows, own))
        if finished or not wanted.startswith(found):
            return found.startswith(wanted)
        return not wanted[len(found) :].strip().decode("utf-8", "ignore")


def _forms(text: str) -> list[str]:
    """A text, and without white space that a chat template writes before it."""
    spaces = range(len(text) - len(text.lstrip()) + 1)
    return [text[n:] for n in islice(spaces, _MOST_FORMS)]
