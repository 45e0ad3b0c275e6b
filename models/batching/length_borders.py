"""Lengths at which a model's config changes how examples are computed.

Scaled rotary positions use other frequencies for long examples; windows, chunks and blocks end
somewhere. A check on a few tokens knows nothing of what happens beyond them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_LOCAL = re.compile(r"window|chunk|block_size|index_topk|context_length|original_max_position")
_NOT_A_LENGTH = re.compile(r"^num_|layer|feed_forward|pattern|idx|indices|^use_")
_NESTED = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True)
class LengthBorders:
    """Borders of a config, each the longest length before the change.

    Attributes:
        whole: beyond them, all positions of a forward pass are computed differently, those of its
            short examples too: longrope. Examples on both sides must not share a batch.
        each: beyond it, each length has its own frequencies: dynamic NTK. Examples beyond it must
            not share a batch with any other; None without such a border.
        local: beyond them, single positions are computed differently: windows, chunks, blocks.
    """

    whole: tuple[int, ...] = ()
    each: int | None = None
    local: tuple[int, ...] = ()

    @property
    def all(self) -> tuple[int, ...]:
        """All borders, in ascending order."""
        found = {*self.whole, *self.local} | ({self.each} if self.each is not None else set())
        return tuple(sorted(found))

    def num_whole(self, length: int) -> int:
        """Number of `whole` borders that an example of this length exceeds."""
        return sum(length > border for border in self.whole)

    def exceeds_each(self, length: int) -> bool:
        """Whether an example of this length has frequencies of its own."""
        return self.each is not None and length > self.each


def length_borders(config: Any) -> LengthBorders:
    """The borders of a transformers config; those of its text model, if nested."""
    text = config.get_text_config()
    fields = text.to_dict()
    ropes = [rope for name in _NESTED for rope in _ropes(fields.get(name))]
    kinds = {_rope_type(rope) for rope in ropes}
    longest = fields.get("max_position_embeddings")
    top = fields.get("original_max_position_embeddings")
    whole = {
        int(rope.get("original_max_position_embeddings") or top or longest)
        for rope in ropes
        if _rope_type(rope) == "longrope"
    }
    is_dynamic = any("dynamic" in kind for kind in kinds)
    local = {length for part in (fields, *ropes) for length in _local_lengths(part)}
    if "num_random_blocks" in fields and "block_size" in fields:  # BigBird: sparse beyond these
        local.add((5 + 2 * fields["num_random_blocks"]) * fields["block_size"])
    each = int(longest) if is_dynamic and longest else None
    return LengthBorders(tuple(sorted(whole)), each, tuple(sorted(local - whole - {each})))


def _ropes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Rotary settings: one for the model, or one for each type of layer."""
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _ropes(inner)


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "")))


def _local_lengths(fields: Mapping[str, Any]) -> Iterator[int]:
    for name, value in fields.items():
        if _LOCAL.search(name) and not _NOT_A_LENGTH.search(name):
            values = value if isinstance(value, list | tuple) else [value]
            yield from (v for v in values if type(v) is int and v > 1)


def forget_lengths(model: Any) -> None:
    """Restore the frequencies of dynamic rotary positions.

    transformers keeps those of the longest example so far (`dynamic_frequency_update` in
    `modeling_rope_utils`), so that a result would depend on what was computed before.
    """
    for module in model.modules():
        if "dynamic" not in str(getattr(module, "rope_type", "")):
            continue
        names = [name for name, _ in module.named_buffers(recurse=False)]
        for name in names:
            prefix = name.removesuffix("inv_freq")
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if name.endswith("inv_freq") and original is not None:
                device = getattr(module, name).device
                module.register_buffer(name, original.to(device), persistent=False)
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
