"""What a student takes over from its teacher's tokenizer: where an answer ends, and the template.

A vocabulary can be equal while EOS, BOS and chat template differ, for instance between a chat model
and the base model that becomes its student. Such a student learns to end answers as its store does,
but no decoder would stop there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from caskd.models import TEXT_FILE, ModelText, open_tokenizer
from caskd.store import StoreSpec, TeacherStore
from caskd.store.corpus import (
    special_tokens,
    token_bytes,
    tokenizer_digest,
    vocab_digest,
)
from caskd.store.errors import IdentityError
from caskd.store.format import STATUSES
from caskd.store.io import files, read_json_object
from caskd.store.spacing import thin

FLAG = "--teacher-tokenizer"
_GENERATION_CONFIG = "generation_config.json"
_RUNS, _RUN_EXAMPLES = 8, 8


Template = str | Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TeacherText:
    """The text of the stores that a student is trained on, as far as it is known.

    Attributes:
        eos_id: EOS of the teacher's tokenizer; None if it has none, or is not known.
        bos_id: BOS, likewise.
        end_ids: special tokens with which stored responses end, the most frequent first.
        start_ids: special tokens with which all sampled examples of a store start.
        template: of conversations: text of the chat template, or texts by name.
        template_arguments: that the template was rendered with.
        rule: number of the text rule.
        chat_turns: which assistant turns are responses.
        template_tokens: whether text that the template writes at the start of a reply is response.
        notes: how the student differs, one sentence each.
    """

    eos_id: int | None = None
    bos_id: int | None = None
    end_ids: tuple[int, ...] = ()
    start_ids: tuple[int, ...] = ()
    template: Template | None = None
    template_arguments: Mapping[str, Any] | None = None
    rule: int = 1
    chat_turns: str | None = None
    template_tokens: bool = False
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> "TeacherText | None":
        """From `to_json`; None stays None (a checkpoint of an older version)."""
        if values is None:
            return None
        names = ("end_ids", "start_ids", "notes")
        lists = {name: tuple(values.get(name, ())) for name in names}
        return cls(**{**values, **lists})


def text_of_store(store: TeacherStore, student: Any, teacher: Any, source: str) -> TeacherText:
    """What one store's text is; unknown fields are None."""
    spec, text = store.spec, store.spec.identity["text"]
    if teacher is not None:
        _check_tokenizer(spec, teacher, source)
    elif student is not None and tokenizer_digest(student) == spec.tokenizer_digest:
        teacher = student  # equal in all that matters here
    known = spec.special_tokens
    if known is None:
        known = {} if teacher is None else special_tokens(teacher)
    template = text.get("template")
    if template is None and text["kind"] == "messages" and teacher is not None:
        template = own_template(teacher)
    special = {*known.get("special_ids", ())}
    if student is not None:
        special |= student.added_tokens_decoder.keys()
    starts, ends = _sampled_edges(store, special)
    return TeacherText(
        eos_id=known.get("eos_id"),
        bos_id=known.get("bos_id"),
        end_ids=ends,
        start_ids=starts,
        template=template,
        template_arguments=text.get("template_arguments"),
        rule=int(text.get("rule", 1)),
        chat_turns=text.get("chat_turns"),
        template_tokens=bool(text.get("template_tokens")),
    )


def _check_tokenizer(spec: StoreSpec, teacher: Any, source: str) -> None:
    own = tokenizer_digest(teacher)
    if own != spec.tokenizer_digest:
        raise IdentityError(
            f"{FLAG} {source}: its tokenizer has digest {own[:12]}, but the store was captured "
            f"with {spec.tokenizer_digest[:12]}; pass the folder of that teacher, {spec.teacher}"
        )


def _sampled_edges(
    store: TeacherStore, special: set[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special tokens with which a sample of examples starts and its responses end.

    All must start with the former; a tenth or more must end with each of the latter. The sample is
    a few short runs of examples: a remote store fetches few files for it.
    """
    text, index = store.spec.identity["text"], store.index
    whole = np.flatnonzero((index.status == STATUSES.index("ok")) & (index.row_count > 0))
    if not len(whole):
        return (), ()
    runs = thin(max(0, len(whole) - _RUN_EXAMPLES) + 1, _RUNS, rounding="down")
    chosen = np.unique(runs[:, None] + np.arange(_RUN_EXAMPLES))
    batch = store.read(whole[chosen[chosen < len(whole)]], ())
    examples = np.split(batch.token_ids, batch.token_offsets[1:-1])
    heads = [list(takewhile(special.__contains__, ids.tolist())) for ids in examples]
    shortest = min(heads, key=len)
    shared = takewhile(lambda n: all(h[n] == shortest[n] for h in heads), range(len(shortest)))
    starts = tuple(shortest[n] for n in shared)
    if not (text["eos"] or text["kind"] == "messages"):
        return starts, ()
    last, counts = np.unique(batch.labels[batch.row_offsets[1:] - 1], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    frequent = last[order][counts[order] * 10 >= counts.sum()].tolist()
    return starts, tuple(id_ for id_ in frequent if id_ in special)


def ends_of(text: TeacherText) -> list[int]:
    """Ids at which the student must stop."""
    ids = [text.eos_id, *text.end_ids]
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))


def own_template(tokenizer: Any) -> Template | None:
    """Chat template of a tokenizer: text, or several by name."""
    template: Template | None = tokenizer.chat_template
    return template or None


def write_teacher_text(text: TeacherText, folder: Path) -> list[str]:
    """Give an exported student the end tokens, BOS and template of its stores.

    Args:
        text: of the stores.
        folder: of the export, with tokenizer and generation config.

    Returns:
        Sentences for the model card: the differences, and what could not be written.
    """
    _add_ends(folder / _GENERATION_CONFIG, ends_of(text))
    refused = _write_tokenizer(folder, text)
    written = ModelText(
        rule=text.rule,
        template_arguments=text.template_arguments,
        chat_turns=text.chat_turns,
        template_tokens=text.template_tokens,
    )
    files.replace_file(folder / TEXT_FILE, written.to_bytes())
    return [*text.notes, *refused]


def _add_ends(path: Path, ends: Sequence[int]) -> None:
    values = read_json_object(path, constants=True) if path.exists() else {}
    found = values.get("eos_token_id")
    own = found if isinstance(found, list) else [] if found is None else [found]
    ids = list(dict.fromkeys([*own, *ends]))
    if ids != own:
        values.pop("_from_model_config", None)  # generate() would read the model's config instead
        content = {**values, "eos_token_id": ids if len(ids) > 1 else ids[0]}
        files.replace_file(path, json.dumps(content, indent=2).encode())


def _write_tokenizer(folder: Path, text: TeacherText) -> list[str]:
    """Set EOS, BOS and template; those that would change the vocabulary are returned as sentences.

    The ids of the vocabulary keep their bytes, or the student's embeddings would be misread.
    """
    tokenizer = open_tokenizer(folder, "export")
    before, refused = vocab_digest(token_bytes(tokenizer)), []
    for name, id_ in (("eos_token", text.eos_id), ("bos_token", text.bos_id)):
        own = getattr(tokenizer, name)
        if id_ is None or getattr(tokenizer, f"{name}_id") == id_:
            continue
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(id_))
        if vocab_digest(token_bytes(tokenizer)) != before:
            setattr(tokenizer, name, own)
            refused.append(f"the tokenizer keeps its own {name}: the teacher's would change an id")
    if text.template is not None:
        tokenizer.chat_template = text.template
    tokenizer.save_pretrained(folder)
    return refused
