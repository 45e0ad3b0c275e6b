"""`store.json`: the identity and the geometry of a store."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caskd.store.errors import IdentityError, UnsafeError, UsageError
from caskd.store.fingerprint import FINGERPRINT, fingerprint_differences
from caskd.store.format import untrusted_json
from caskd.store.format.layout import ArrayLayout
from caskd.store.format.names import STORE_JSON, canonical_json
from caskd.store.format.row_encodings import ROW_ENCODINGS
from caskd.store.format.rows import ROW_KINDS, RowEncoding, RowKind
from caskd.store.format.versions import VERSIONS, capture_fields, version_problem
from caskd.store.io import value_text

FORMAT = "caskd-store"

Identity = Mapping[str, Any]
SPECIAL_TOKEN_FIELDS = frozenset({"eos_id", "bos_id", "special_ids"})
"""Fields of `identity.vocabulary` that stores of older versions lack; absent means unknown."""


@dataclass(frozen=True)
class StoreSpec:
    """Identity and geometry of a store.

    Attributes:
        identity: everything that the values depend on: teacher, vocabulary, text, corpus, capture
            and encoding (nested JSON).
        num_examples: examples on the example axis, skipped ones included.
        num_tokens: tokens on the token axis.
        num_rows: predicted response tokens, without the filler at the end of shards.
        num_shards: shards of the row axis.
        shard_rows: rows of one shard, filler included.
        chunk_rows: rows of a chunk of cells.
        tasks: task names; the `task` array holds indices into them.
        format_version: 1, or 2 for a store that a reader of version 1 would misread.
        optional_arrays: arrays beyond those of the encoding; format 2 only.
    """

    identity: Identity
    num_examples: int
    num_tokens: int
    num_rows: int
    num_shards: int
    shard_rows: int
    chunk_rows: int
    tasks: tuple[str, ...]
    format_version: int = 1
    optional_arrays: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Name of the kind of rows: `topk`, the largest logits, `sampled`, counted draws, or
        `head_sampled`, the largest logits and draws of the rest."""
        return str(self.identity["capture"]["kind"])

    @property
    def top_k(self) -> int:
        """Logits kept per row of a `topk` store."""
        return int(self.identity["capture"]["top_k"])

    @property
    def num_samples(self) -> int:
        """Draws per row of a `sampled` or `head_sampled` store."""
        return int(self.identity["capture"]["num_samples"])

    @property
    def num_cells(self) -> int:
        """k, cells per row: `top_k`, `num_samples`, or `head` + `num_samples`."""
        return self.row_kind.num_cells(self.identity["capture"])

    @property
    def kept(self) -> str:
        """What a row keeps, such as `top 64` or `50 draws`."""
        return self.row_kind.kept_text(self.identity["capture"])

    @property
    def vocab_size(self) -> int:
        """V, the tokenizer's largest id + 1."""
        return int(self.identity["vocabulary"]["size"])

    @property
    def vocab_digest(self) -> str:
        """Digest of id -> token bytes; a student must have the same digest."""
        return str(self.identity["vocabulary"]["digest"])

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the whole tokenizer; every worker must have the same digest."""
        return str(self.identity["vocabulary"]["tokenizer_digest"])

    @property
    def text_rule(self) -> int:
        """Rule by which text became tokens; 1 in stores that name none."""
        return int(self.identity["text"].get("rule", 1))

    @property
    def capture_fields(self) -> dict[str, str]:
        """Meaning of the values: engine, values, label, rank, argmax and tail."""
        return capture_fields(self.identity["capture"])

    @property
    def imported_from(self) -> str | None:
        """Where rows came from that caskd did not capture; None for its own captures."""
        found: str | None = self.identity["capture"].get("imported_from")
        return found

    @property
    def special_tokens(self) -> Mapping[str, Any] | None:
        """`eos_id`, `bos_id` (null: the teacher has none) and `special_ids` of the teacher's
        tokenizer; None in stores of versions that did not record them."""
        vocabulary = self.identity["vocabulary"]
        if not vocabulary.keys() >= SPECIAL_TOKEN_FIELDS:
            return None
        return {field: vocabulary[field] for field in sorted(SPECIAL_TOKEN_FIELDS)}

    @property
    def teacher(self) -> str:
        """The teacher's name: a hub repository or the last folder name."""
        return str(self.identity["teacher"]["name"])

    @property
    def encoding(self) -> str:
        """Name of the encoding of the row arrays."""
        return str(self.identity["encoding"])

    @property
    def row_kind(self) -> RowKind:
        """The kind of rows: their fields and the number of their cells."""
        return ROW_KINDS[self.kind]

    @property
    def row_encoding(self) -> RowEncoding:
        """The encoding of the row arrays."""
        return ROW_ENCODINGS[self.kind, self.encoding]

    def row_layouts(self) -> tuple[ArrayLayout, ...]:
        """The arrays on disk of the shards: rows, then the tables of the encoding."""
        rows = self.row_encoding.layouts(self.num_cells, self.chunk_rows, self.shard_rows)
        return *rows, *self.row_encoding.tables(self.vocab_size, self.shard_rows)

    def to_json(self) -> bytes:
        """The bytes of `store.json`."""
        geometry = {
            "num_examples": self.num_examples,
            "num_tokens": self.num_tokens,
            "num_rows": self.num_rows,
            "num_shards": self.num_shards,
            "shard_rows": self.shard_rows,
            "chunk_rows": self.chunk_rows,
        }
        content = {
            "format": FORMAT,
            "format_version": self.format_version,
            "identity": self.identity,
            "geometry": geometry,
            "tasks": list(self.tasks),
        }
        if self.format_version > 1:
            content["optional_arrays"] = list(self.optional_arrays)
        return canonical_json(content)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "StoreSpec":
        """Parse `store.json`; `where` names it in errors.

        Raises:
            UnsafeError: not the store.json of a caskd store, or of an unknown format version.
        """
        try:
            value = untrusted_json.parse_json(data, where)
            if value["format"] != FORMAT:
                raise UnsafeError(
                    f"{where}: format is {value_text(value['format'])}; expected {FORMAT!r}"
                )
            version = value["format_version"]
            if type(version) is not int or version not in VERSIONS:
                raise UnsafeError(
                    f"{where}: format version is {value_text(version)}, but this caskd "
                    f"reads version {' and '.join(map(str, VERSIONS))}",
                    cure="install a caskd that reads it",
                )
            if version > 1 and "optional_arrays" not in value:
                raise UnsafeError(
                    f"{where}: format version is {version} without optional_arrays, but this caskd "
                    "reads version 1, and version 2 with them",
                    cure="copy the store again",
                )
            optional = value["optional_arrays"] if version > 1 else []
        except (KeyError, TypeError) as error:
            raise UnsafeError(
                f"{where}: not a valid {STORE_JSON} ({type(error).__name__})"
            ) from None
        untrusted_json.check_store_json(value, where)
        problem = version_problem(version, value["identity"], optional)
        if problem:
            raise UnsafeError(f"{where}: format version {version}, but {problem}.")
        return cls(
            identity=value["identity"],
            tasks=tuple(value["tasks"]),
            format_version=version,
            optional_arrays=tuple(optional),
            **value["geometry"],
        )


def identity_differences(ours: Identity, theirs: Identity) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted field, our value, their value) for every field that differs."""
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if key == FINGERPRINT and isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from fingerprint_differences(a, b)
        elif isinstance(a, Mapping) and isinstance(b, Mapping):
            for name, x, y in identity_differences(a, b):
                yield f"{key}.{name}", x, y
        elif a != b:
            yield key, a, b


def check_identity(spec: StoreSpec, identity: Identity, where: str) -> None:
    """Check that `identity` equals the store's.

    Raises:
        IdentityError: names the difference that a person would name first, with both values and
            the flag behind it, and then the fields of all other differences.
    """
    every = sorted(identity_differences(spec.identity, identity), key=lambda item: _rank(item[0]))
    if every:
        (field, theirs, ours), *others = every
        names = ", ".join(name for name, _, _ in others)
        more = f" (and {len(others)} more: {names})" if others else ""
        there, here = _excerpts(theirs, ours)
        raise IdentityError(
            f"{where}: holds another capture; {field} is {there} there, but {here} "
            f"here{_behind(field)}{more}; pass the same inputs, or another --store"
        )


def check_imported(spec: StoreSpec, where: str, accept: str | None) -> None:
    """Check that a run may read rows that another program captured.

    Args:
        spec: of the store.
        where: the flag that named the store, and its name.
        accept: what to pass to accept them; None if they are accepted.

    Raises:
        UsageError: the store was imported, and `accept` is not None.
    """
    if accept is not None and spec.imported_from is not None:
        raise UsageError(
            f"{where}: capture.imported_from is {spec.imported_from}: another program captured its "
            f"rows, which caskd cannot check against the teacher; expected {accept}; read caskd "
            f"store card, then pass {accept}"
        )


_BEHIND = {
    "teacher.name": "--teacher",
    "teacher.revision": "--teacher",
    "teacher.adapter": "--adapter",
    "corpus.num_records": "--data",
    "text.kind": "--data",
    "text.template": "--teacher or --chat-template",
    "text.template_arguments": "--template-arguments",
    "text.template_tokens": "--train-template-tokens",
    "text.chat_turns": "--chat-turns",
    "text.eos": "--no-eos",
    "text.max_length": "--max-length",
    "text.on_long": "--on-long",
    "text.on_duplicate": "--on-duplicate",
    "capture.kind": "--sample",
    "capture.num_samples": "--sample",
    "capture.head": "--head",
    "capture.sample_seed": "--sample-seed",
    "capture.top_k": "--top-k",
    "capture.min_mass": "--min-mass",
    "encoding": "--encoding",
    "capture.load_dtype": "--dtype",
    "capture.logits_dtype": "--dtype",
    "capture.attention": "--attention",
    "vocabulary.size": "--teacher",
    # The rest: fields whose values tell a person nothing.
    "teacher.adapter.digest": "--adapter: other weights",
    "teacher.weights_digest": "--teacher: other weights",
    "teacher.config_digest": "--teacher: another config.json",
    "vocabulary.digest": "--teacher: another vocabulary",
    "vocabulary.tokenizer_digest": "--teacher: another tokenizer",
    "text.template_digest": "another chat template",
    "corpus.digest": "--data: other texts or columns",
}
"""What a person would call each field of an identity, in the order in which they would look."""


def _known(field: str) -> str | None:
    """The entry of `_BEHIND` for a field or for the object that holds it."""
    return next((name for name in (field, field.rpartition(".")[0]) if name in _BEHIND), None)


def _rank(field: str) -> tuple[bool, int, str]:
    """Sort key of a differing field: what a person recognises first, digests last."""
    known = _known(field)
    place = list(_BEHIND).index(known) if known else len(_BEHIND)
    return field.endswith("digest"), place, field


def _behind(field: str) -> str:
    known = _known(field)
    return f" ({_BEHIND[known]})" if known else ""


def _excerpts(theirs: Any, ours: Any) -> tuple[str, str]:
    """Both values for an error; of two long texts the part from where they differ."""
    if isinstance(theirs, str) and isinstance(ours, str):
        pairs = enumerate(zip(theirs, ours, strict=False))
        start = max(0, next((i for i, (a, b) in pairs if a != b), min(len(theirs), len(ours))) - 10)
        if start and max(len(theirs), len(ours)) > 60:
            theirs, ours = (f"...{text[start : start + 40]}" for text in (theirs, ours))
    return _shown(theirs), _shown(ours)


def _shown(value: Any) -> str:
    structured = isinstance(value, dict | list)
    return value_text(json.dumps(value, sort_keys=True) if structured else value)
