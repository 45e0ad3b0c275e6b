"""Which format version a store needs, and the fields that only format 2 has.

A store that an older reader would misread is never written as format 1.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from caskd.store.format.layout import NUM_STATUSES, STATUSES

VERSIONS = (1, 2)
OPTIONAL_ARRAYS: frozenset[str] = frozenset()
"""Names that `optional_arrays` may list; none is defined yet."""
CAPTURE_VALUES: Mapping[str, tuple[str, ...]] = {
    "engine": ("transformers", "vllm", "server"),
    "values": ("logits", "log-probs"),
    "label": ("exact", "within_topk"),
    "rank": ("exact", "capped"),
    "argmax": ("exact", "unknown"),
    "tail": ("exact", "complement", "unknown"),
}
"""Fields of `identity.capture` and their values; the first one is meant where a field is absent."""
_ENCODINGS_OF_2 = frozenset({"fitted", "fitted2"})
_KINDS_OF_2 = frozenset({"head_sampled"})
_ONLY_IN_2 = ("engine_version", "imported_from")


def capture_fields(capture: Mapping[str, Any]) -> dict[str, str]:
    """Every field of `CAPTURE_VALUES` with the value that a store has."""
    return {name: str(capture.get(name, known[0])) for name, known in CAPTURE_VALUES.items()}


def unusual_capture(identity: Mapping[str, Any]) -> str:
    """The capture fields that differ from an ordinary capture's, in words; empty if none does."""
    capture = identity["capture"]
    found = [
        f"{name} {value}"
        for name, value in capture_fields(capture).items()
        if value != CAPTURE_VALUES[name][0]
    ]
    found += [f"{name} {capture[name]}" for name in _ONLY_IN_2 if capture.get(name) is not None]
    return ", ".join(found)


def needed_version(identity: Mapping[str, Any], statuses: Iterable[str]) -> int:
    """The lowest format version whose readers understand such a store."""
    capture = identity["capture"]
    ordinary = all(
        value == CAPTURE_VALUES[name][0] for name, value in capture_fields(capture).items()
    )
    imported = capture.get("imported_from") is not None
    later = any(STATUSES.index(status) >= NUM_STATUSES[1] for status in statuses)
    encoding = identity.get("encoding") in _ENCODINGS_OF_2 or capture.get("kind") in _KINDS_OF_2
    return 2 if imported or later or encoding or not ordinary else 1


def version_problem(version: int, identity: Mapping[str, Any], optional_arrays: Any) -> str | None:
    """The first field of a store.json that its format version does not allow, in words."""
    capture = identity["capture"]
    for name, known in CAPTURE_VALUES.items():
        if name in capture and capture[name] not in known:
            return f"capture.{name} is not one of {', '.join(known)}"
    for name in _ONLY_IN_2:
        if not isinstance(capture.get(name), str | None):
            return f"capture.{name} is no text"
    if version == 1 and needed_version(identity, ()) != 1:
        return "its capture or encoding needs format version 2"
    if not isinstance(optional_arrays, list) or not all(
        isinstance(name, str) for name in optional_arrays
    ):
        return "optional_arrays is not a list of names"
    unknown = sorted({*optional_arrays} - OPTIONAL_ARRAYS)
    if unknown:
        return f"optional_arrays has {unknown[0][:40]!r}, which this caskd does not know"
    return None
