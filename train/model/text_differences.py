"""How a student's tokenizer differs from the text of its stores, in sentences."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from caskd.models import open_generation_config, open_tokenizer, stop_ids
from caskd.store import TeacherStore
from caskd.store.corpus import TEXT_RULE, leading_ids, template_digest, tokenizer_digest
from caskd.store.io import value_text
from caskd.train.model.teacher_text import FLAG, TeacherText, ends_of, own_template, text_of_store

_EXPORT_CURES = {
    "end": "caskd export adds the former to its generation config",
    "token": "caskd export writes the teacher's into the tokenizer",
    "template": "caskd export writes the teacher's",
}
_OWN_CURES = {
    "end": "add the former to generation_config.eos_token_id of the model",
    "token": "save the student with the teacher's",
    "template": "save the student with the teacher's (chat_template of its tokenizer)",
}
"""What to do in a loop that saves the student itself."""


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
    texts = [text_of_store(store, tokenizer, teacher, str(teacher_tokenizer)) for store in stores]
    main = next((text for text in texts if text.template is not None), texts[0])
    ends = dict.fromkeys(id_ for text in texts for id_ in text.end_ids)
    main = replace(main, end_ids=tuple(ends))
    stops = stop_ids(tokenizer, open_generation_config(student))
    notes = [*_unknown(stores, texts, tokenizer), *_mixed(stores, texts)]
    notes += _differences(main, tokenizer, stops, _EXPORT_CURES)
    notes += _other_starts(stores, texts, tokenizer)
    return replace(main, notes=tuple(dict.fromkeys(notes)))


def text_notes(stores: Sequence[TeacherStore], tokenizer: Any, *configs: Any) -> list[str]:
    """Differences between a student in a loop of the user's own and the stores, as sentences.

    Args:
        stores: to train on.
        tokenizer: the student's; None compares end tokens alone.
        configs: generation configs of the student.
    """
    texts = [text_of_store(store, tokenizer, None, "") for store in stores]
    main = next((text for text in texts if text.template is not None), texts[0])
    ends = dict.fromkeys(id_ for text in texts for id_ in text.end_ids)
    main = replace(main, end_ids=tuple(ends))
    stops = stop_ids(tokenizer, *configs)
    if tokenizer is None and not stops:
        return []  # the tokenizer, which is not known here, decides
    return [
        *_differences(main, tokenizer, stops, _OWN_CURES),
        *_other_starts(stores, texts, tokenizer),
    ]


def _other_starts(
    stores: Sequence[TeacherStore], texts: Sequence[TeacherText], tokenizer: Any
) -> Iterator[str]:
    """A note for each store of texts before which the student's tokenizer puts other tokens."""
    own = () if tokenizer is None else tuple(leading_ids(tokenizer))
    for store, text in zip(stores, texts, strict=True):
        spec = store.spec
        if tokenizer is None or tokenizer_digest(tokenizer) == spec.tokenizer_digest:
            continue
        if spec.identity["text"]["kind"] == "messages":
            continue  # the template decides
        starts = text.start_ids[: max(1, len(own))]
        if starts == own or (not own and starts != (text.bos_id,)):
            continue
        yield (
            f"examples of {store.name} start with {_names(tokenizer, starts) or 'no special token'}"
            f", but the student's tokenizer puts {_names(tokenizer, own) or 'nothing'} before a "
            "prompt; unless the prompts hold it, copy the teacher's tokenizer.json into the "
            "student's folder before training"
        )


def _unknown(
    stores: Sequence[TeacherStore], texts: Sequence[TeacherText], tokenizer: Any
) -> Iterator[str]:
    """A note for each store of an older version whose tokenizer is not the student's."""
    for store, text in zip(stores, texts, strict=True):
        spec = store.spec
        if text.rule != TEXT_RULE:
            yield (
                f"{store.name} follows text rule {text.rule}, but caskd predict makes prompts by "
                f"rule {TEXT_RULE}; capture it again if the tokenizer puts a prefix before a text"
            )
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
    """A note for each field of the conversations in which the stores differ."""
    chats = [(s, t) for s, t in zip(stores, texts, strict=True) if t.template is not None]
    for field, what in (
        ("template", "chat templates"),
        ("template_arguments", "arguments of the chat template"),
        ("template_tokens", "values of --train-template-tokens"),
    ):
        values = [json.dumps(getattr(text, field) or None, sort_keys=True) for _, text in chats]
        if len(set(values)) > 1:
            yield (
                f"the stores were captured with {len(set(values))} {what}; caskd export writes "
                f"that of {chats[0][0].name}"
            )


def _differences(
    text: TeacherText, tokenizer: Any, stops: Sequence[int], cures: Mapping[str, str]
) -> Iterator[str]:
    missing = [id_ for id_ in ends_of(text) if id_ not in stops]
    if missing:
        yield (
            f"responses end with {_names(tokenizer, missing)}, but the student stops at "
            f"{_names(tokenizer, stops) or 'no token'} only; {cures['end']}"
        )
    if tokenizer is None:
        return
    for name in ("eos", "bos"):
        id_, own = getattr(text, f"{name}_id"), getattr(tokenizer, f"{name}_token_id")
        if id_ is not None and id_ != own:
            yield (
                f"the teacher's {name.upper()} is {_names(tokenizer, [id_])}, the student's "
                f"{'none' if own is None else _names(tokenizer, [own])}; {cures['token']}"
            )
    if text.template is not None and own_template(tokenizer) != text.template:
        own = "another" if tokenizer.chat_template else "no"
        yield f"the student has {own} chat template; {cures['template']}"


def _names(tokenizer: Any, ids: Sequence[int]) -> str:
    if tokenizer is None:
        return ", ".join(f"id {id_}" for id_ in ids)
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    return ", ".join(f"{value_text(t)} (id {id_})" for t, id_ in zip(tokens, ids, strict=True))
