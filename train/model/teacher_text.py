"""What a student takes over from its teacher's tokenizer: where an answer ends, and the template.

A vocabulary can be equal while EOS, BOS and chat template differ, for instance between a chat model
and the base model that becomes its student. Such a student learns to end answers as its store does,
but no decoder would stop there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caskd.models import open_generation_config, open_tokenizer, stop_ids
from caskd.store import StoreSpec, TeacherStore
from caskd.store.corpus import (
    special_tokens,
    template_digest,
    token_bytes,
    tokenizer_digest,
    vocab_digest,
)
from caskd.store.errors import IdentityError
from caskd.store.format import STATUSES
from caskd.store.io import files, read_json_object, value_text
from caskd.store.spacing import thin

FLAG = "--teacher-tokenizer"
TEXT_FILE = "caskd_text.json"
"""Beside an exported student: rule, template arguments and chat turns of its store's text."""
_GENERATION_CONFIG = "generation_config.json"
_RUNS, _RUN_EXAMPLES = 8, 8


@dataclass(frozen=True, kw_only=True)
class TeacherText:
    """The text of the stores that a student is trained on, as far as it is known.

    Attributes:
        eos_id: EOS of the teacher's tokenizer; None if it has none, or is not known.
        bos_id: BOS, likewise.
        end_ids: special tokens with which stored responses end, the most frequent first.
        template: text of the chat template; None for stores without conversations.
        template_arguments: that the template was rendered with.
        rule: number of the text rule.
        chat_turns: which assistant turns are responses.
        notes: how the student differs, one sentence each.
    """

    eos_id: int | None = None
    bos_id: int | None = None
    end_ids: tuple[int, ...] = ()
    template: str | None = None
    template_arguments: Mapping[str, Any] | None = None
    rule: int = 1
    chat_turns: str | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> "TeacherText | None":
        """From `to_json`; None stays None (a checkpoint of an older version)."""
        if values is None:
            return None
        lists = {name: tuple(values[name]) for name in ("end_ids", "notes")}
        return cls(**{**values, **lists})


def teacher_text(
    stores: Sequence[TeacherStore],
    student: str,
    tokenizer: Any,
    *,
    teacher_tokenizer: str | None = None,
) -> TeacherText:
    """What the student must take over from the stores, with a note of each difference.

    Args:
        stores: of the run.
        student: folder or hub id of the student.
        tokenizer: the student's.
        teacher_tokenizer: folder or hub id of the teacher's tokenizer, for older stores.

    Raises:
        UsageError: that tokenizer cannot be opened.
        IdentityError: a store was captured with another tokenizer.
    """
    teacher = None if teacher_tokenizer is None else open_tokenizer(teacher_tokenizer, FLAG)
    texts = [_of_store(store, tokenizer, teacher, str(teacher_tokenizer)) for store in stores]
    main = next((text for text in texts if text.template is not None), texts[0])
    ends = dict.fromkeys(id_ for text in texts for id_ in text.end_ids)
    main = replace(main, end_ids=tuple(ends))
    stops = stop_ids(tokenizer, open_generation_config(student))
    notes = [*_unknown(stores, texts, tokenizer), *_mixed(stores, texts)]
    notes += _differences(main, tokenizer, stops)
    return replace(main, notes=tuple(dict.fromkeys(notes)))


def _of_store(store: TeacherStore, student: Any, teacher: Any, source: str) -> TeacherText:
    """What one store's text is; unknown fields are None."""
    spec, text = store.spec, store.spec.identity["text"]
    if teacher is not None:
        _check_tokenizer(spec, teacher, source)
    elif tokenizer_digest(student) == spec.tokenizer_digest:
        teacher = student  # equal in all that matters here
    known = spec.special_tokens
    if known is None:
        known = {} if teacher is None else special_tokens(teacher)
    template = text.get("template")
    if template is None and text["kind"] == "messages" and teacher is not None:
        template = _own_template(teacher)
    return TeacherText(
        eos_id=known.get("eos_id"),
        bos_id=known.get("bos_id"),
        end_ids=_response_ends(
            store, {*known.get("special_ids", ()), *student.added_tokens_decoder}
        ),
        template=template,
        template_arguments=text.get("template_arguments"),
        rule=int(text.get("rule", 1)),
        chat_turns=text.get("chat_turns"),
    )


def _check_tokenizer(spec: StoreSpec, teacher: Any, source: str) -> None:
    own = tokenizer_digest(teacher)
    if own != spec.tokenizer_digest:
        raise IdentityError(
            f"{FLAG} {source}: its tokenizer has digest {own[:12]}, but the store was captured "
            f"with {spec.tokenizer_digest[:12]}; pass the folder of that teacher, {spec.teacher}"
        )


def _response_ends(store: TeacherStore, special: set[int]) -> tuple[int, ...]:
    """Special tokens that end a tenth or more of a sample of stored responses.

    The sample is a few short runs of examples: a remote store fetches few files for it.
    """
    text, index = store.spec.identity["text"], store.index
    whole = np.flatnonzero((index.status == STATUSES.index("ok")) & (index.row_count > 0))
    if not len(whole) or not (text["eos"] or text["kind"] == "messages"):
        return ()
    starts = thin(max(0, len(whole) - _RUN_EXAMPLES) + 1, _RUNS, rounding="down")
    chosen = np.unique(starts[:, None] + np.arange(_RUN_EXAMPLES))
    batch = store.read(whole[chosen[chosen < len(whole)]], ())
    last, counts = np.unique(batch.labels[batch.row_offsets[1:] - 1], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    frequent = last[order][counts[order] * 10 >= counts.sum()].tolist()
    return tuple(id_ for id_ in frequent if id_ in special)


def _unknown(
    stores: Sequence[TeacherStore], texts: Sequence[TeacherText], tokenizer: Any
) -> Iterator[str]:
    """A note for each store of an older version whose tokenizer is not the student's."""
    for store, text in zip(stores, texts, strict=True):
        spec = store.spec
        stored = spec.identity["text"].get("template_digest")
        if spec.special_tokens is None and text.eos_id is None:
            yield (
                f"{store.name} does not record the teacher's EOS, and the student's tokenizer "
                f"differs from the teacher's; pass {FLAG} FOLDER so that the export stops and is "
                "asked as the teacher was"
            )
        elif stored is not None and text.template is None:
            same = bool(tokenizer.chat_template) and template_digest(tokenizer) == stored
            if not same:
                yield (
                    f"{store.name} does not record the text of the teacher's chat template, which "
                    f"the student lacks; pass {FLAG} FOLDER so that the export is asked as the "
                    "teacher was"
                )


def _mixed(stores: Sequence[TeacherStore], texts: Sequence[TeacherText]) -> Iterator[str]:
    templates = {text.template: store.name for store, text in zip(stores, texts, strict=True)}
    templates.pop(None, None)
    if len(templates) > 1:
        first = next(iter(templates.values()))
        yield (
            f"the stores were captured with {len(templates)} chat templates; caskd export writes "
            f"that of {first}"
        )


def _differences(text: TeacherText, tokenizer: Any, stops: Sequence[int]) -> Iterator[str]:
    missing = [id_ for id_ in _ends_of(text) if id_ not in stops]
    if missing:
        yield (
            f"responses end with {_names(tokenizer, missing)}, but the student stops at "
            f"{_names(tokenizer, stops) or 'no token'} only; caskd export adds the former to its "
            "generation config"
        )
    for name in ("eos", "bos"):
        id_, own = getattr(text, f"{name}_id"), getattr(tokenizer, f"{name}_token_id")
        if id_ is not None and id_ != own:
            yield (
                f"the teacher's {name.upper()} is {_names(tokenizer, [id_])}, the student's "
                f"{'none' if own is None else _names(tokenizer, [own])}; caskd export writes the "
                "teacher's into the tokenizer"
            )
    if text.template is not None and _own_template(tokenizer) != text.template:
        own = "another" if tokenizer.chat_template else "no"
        yield f"the student has {own} chat template; caskd export writes the teacher's"


def _ends_of(text: TeacherText) -> list[int]:
    """Ids at which the student must stop."""
    ids = [text.eos_id, *text.end_ids]
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))


def _own_template(tokenizer: Any) -> str | None:
    return str(tokenizer.get_chat_template()) if tokenizer.chat_template else None


def _names(tokenizer: Any, ids: Sequence[int]) -> str:
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    return ", ".join(f"{value_text(t)} (id {id_})" for t, id_ in zip(tokens, ids, strict=True))


def write_teacher_text(text: TeacherText, folder: Path) -> list[str]:
    """Give an exported student the end tokens, BOS and template of its stores.

    Args:
        text: of the stores.
        folder: of the export, with tokenizer and generation config.

    Returns:
        Sentences for the model card: the differences, and what could not be written.
    """
    _add_ends(folder / _GENERATION_CONFIG, _ends_of(text))
    refused = _write_tokenizer(folder, text)
    content = {
        "rule": text.rule,
        "template_arguments": text.template_arguments or {},
        "chat_turns": text.chat_turns,
    }
    files.replace_file(folder / TEXT_FILE, json.dumps(content, indent=1, sort_keys=True).encode())
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
