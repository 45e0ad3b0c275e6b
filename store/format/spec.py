"""What a store says of itself: `store.json`, its identity and its geometry."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caskd.store.errors import IdentityError, UnsafeError
from caskd.store.format import untrusted_json
from caskd.store.io import value_text

FORMAT = "caskd-store"
FORMAT_VERSION = 1

Identity = Mapping[str, Any]


def canonical_json(value: Any) -> bytes:
    """The one way JSON is written in a store, so that equal content means equal bytes."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


@dataclass(frozen=True)
class StoreSpec:
    """Identity and geometry of a store; everything a trainer must agree with.

    Attributes:
        identity: what makes the numbers what they are: teacher, vocabulary, text, corpus, capture
            and encoding (nested JSON).
        num_examples: examples on the example axis, skipped ones included.
        num_tokens: tokens on the token axis.
        num_rows: predicted response tokens, without the filler at the end of shards.
        num_shards: shards of the row axis.
        shard_rows: rows of one shard, filler included.
        chunk_rows: rows of one inner chunk.
        tasks: names that the `task` array indexes.
    """

    identity: Identity
    num_examples: int
    num_tokens: int
    num_rows: int
    num_shards: int
    shard_rows: int
    chunk_rows: int
    tasks: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What a row holds: `topk`, the largest logits, or `sampled`, draws and how often."""
        return str(self.identity["capture"]["kind"])

    @property
    def top_k(self) -> int:
        """Logits kept per row of a `topk` store."""
        return int(self.identity["capture"]["top_k"])

    @property
    def num_samples(self) -> int:
        """Draws per row of a `sampled` store."""
        return int(self.identity["capture"]["num_samples"])

    @property
    def num_cells(self) -> int:
        """Cells per row: `top_k`, or `num_samples`, of which as many are used as ids differ."""
        return int(self.identity["capture"][untrusted_json.CELLS_OF_KIND[self.kind]])

    @property
    def kept(self) -> str:
        """What a row keeps, in a few words."""
        return f"top {self.top_k}" if self.kind == "topk" else f"{self.num_samples:,} draws"

    @property
    def vocab_size(self) -> int:
        """V, the tokenizer's largest id + 1."""
        return int(self.identity["vocabulary"]["size"])

    @property
    def vocab_digest(self) -> str:
        """Digest of id -> token bytes; a student must have the same."""
        return str(self.identity["vocabulary"]["digest"])

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the whole tokenizer; other workers must have the same."""
        return str(self.identity["vocabulary"]["tokenizer_digest"])

    @property
    def teacher(self) -> str:
        """The teacher's name: a hub repository or the last folder name."""
        return str(self.identity["teacher"]["name"])

    @property
    def encoding(self) -> str:
        """Name of the encoding of the row arrays."""
        return str(self.identity["encoding"])

    def to_json(self) -> bytes:
        """The bytes of `store.json`."""
        geometry = {
            name: getattr(self, name)
            for name in (
                "num_examples", "num_tokens", "num_rows", "num_shards", "shard_rows", "chunk_rows",
            )
        }  # fmt: skip
        return canonical_json(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "identity": self.identity,
                "geometry": geometry,
                "tasks": list(self.tasks),
            }
        )

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "StoreSpec":
        """Parse `store.json`; `where` names it in errors.

        Raises:
            UnsafeError: not a caskd store, or of a version that this caskd does not know.
        """
        try:
            value = untrusted_json.parse_json(data, where)
            if value["format"] != FORMAT:
                raise UnsafeError(
                    f"{where}: format is {value_text(value['format'])}, expected {FORMAT!r}."
                )
            if value["format_version"] != FORMAT_VERSION:
                raise UnsafeError(
                    f"{where}: format version {value_text(value['format_version'])}, but this "
                    f"caskd reads version {FORMAT_VERSION}. Install a caskd that reads it."
                )
        except (KeyError, TypeError) as error:
            raise UnsafeError(
                f"{where}: not a valid store.json ({type(error).__name__})."
            ) from None
        untrusted_json.check_store_json(value, where)
        return cls(identity=value["identity"], tasks=tuple(value["tasks"]), **value["geometry"])


def identity_differences(ours: Identity, theirs: Identity) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted field, our value, their value) for every field that differs."""
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for name, x, y in identity_differences(a, b):
                yield f"{key}.{name}", x, y
        elif a != b:
            yield key, a, b


def check_identity(spec: StoreSpec, identity: Identity, where: str) -> None:
    """Refuse to go on under another identity than the store's.

    Raises:
        IdentityError: names the first differing field with both values, and how many more differ.
    """
    differences = list(identity_differences(spec.identity, identity))
    if differences:
        field, theirs, ours = differences[0]
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise IdentityError(
            f"{where} holds another capture: {field} is {theirs!r} there, but {ours!r} here{more}. "
            "Give the same inputs, or another --store."
        )
