"""cascade.json: all settings that serving a cascade needs besides the two models."""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caskd.eval.rules import OUTCOME_RULES, ROUTERS, Router, fixed_rule
from caskd.eval.study import OperatingPoint
from caskd.store.errors import UsageError, reason
from caskd.store.io import read_json_object, value_text

FORMAT = "caskd-cascade"
FORMAT_VERSION = 2
"""Files of version 1 have the decoding of the small model alone, for both."""
_IDENTITY = ("name", "revision", "weights_digest", "tokenizer_digest", "num_parameters")


@dataclass(frozen=True)
class CascadeFile:
    """The checked content of a cascade.json."""

    rule: str
    threshold: float
    router: Router | None
    small: Mapping[str, Any]
    """Identity of the small model."""
    large: Mapping[str, Any]
    decoding: Mapping[str, Mapping[str, Any]]
    """Of `small` and `large`."""
    text: Mapping[str, Mapping[str, Any]]
    """Text rule and chat template of `small` and `large`."""
    expected: Mapping[str, Any]
    """Measured mean and interval of quality, deferral_rate and cost."""
    is_old: bool
    """It has the decoding of the small model alone."""


def cascade_fields(point: OperatingPoint) -> dict[str, Any]:
    """The content of cascade.json."""
    pair, router = point.result.pair, point.scores.router
    never = point.threshold == float("inf")
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "caskd_version": version("caskd"),
        "operating_point": str(point.constraint),
        "rule": point.scores.rule,
        "threshold": None if never else point.threshold,
        "router": router.to_json() if router else None,
        "small": _identity(pair.small.metadata["model"]),
        "large": _identity(pair.large.metadata["model"]),
        "decoding": _decoding_fields(pair.small.metadata),
        "large_decoding": _decoding_fields(pair.large.metadata),
        "text": {
            "small": pair.small.metadata.get("text", {}),
            "large": pair.large.metadata.get("text", {}),
        },
        "chosen_on": point.chosen_on,
        "expected": {
            "num_examples": len(pair),
            "quality": asdict(point.quality),
            "deferral_rate": asdict(point.deferral_rate),
            "cost": {**asdict(point.cost), "unit": point.cost_unit},
            "seconds": point.seconds,
        },
    }


def _decoding_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """How a model's answers were decoded, with the stop texts of each task."""
    tasks = metadata.get("tasks", {})
    stops = {name: list(task.get("stop", [])) for name, task in tasks.items()}
    return {**metadata.get("decoding", {}), **({"stop_by_task": stops} if stops else {})}


def read_cascade(file: str) -> CascadeFile:
    """Read a cascade.json.

    Raises:
        UsageError: the file is missing, not a cascade.json, or of another version.
    """
    path = Path(file)
    if not path.is_file():
        raise UsageError(
            f"{file}: does not exist; expected a cascade.json; write it with "
            "caskd eval ... --operating-point 'quality>=0.86'"
        )
    try:
        fields = read_json_object(path)
        if fields["format"] != FORMAT:
            raise ValueError
        if fields["version"] not in (1, FORMAT_VERSION):
            raise UsageError(
                f"{file}: format version is {value_text(fields['version'])}; expected 1 or "
                f"{FORMAT_VERSION}; install a newer caskd"
            )
        return _parse(fields)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{file}: not readable ({type(error).__name__}: {reason(error)}); expected a "
            "cascade.json of caskd eval; rerun caskd eval --operating-point"
        ) from None


def _parse(fields: Mapping[str, Any]) -> CascadeFile:
    rule, router = str(fields["rule"]), fields["router"]
    if rule in OUTCOME_RULES:
        raise UsageError(
            f"cascade.json: its rule is the column {rule} of an outcome table, which caskd cannot "
            "compute for new answers; expected a rule of predictions; compare your own score with "
            f"the threshold {value_text(fields['threshold'])}"
        )
    if rule not in ROUTERS and fixed_rule(rule) is None:
        raise ValueError
    if (rule in ROUTERS) != (router is not None):
        raise ValueError
    is_old = fields["version"] == 1
    small = _decoding(fields["decoding"])
    large = {**small, "stop_ids": None} if is_old else _decoding(fields["large_decoding"])
    return CascadeFile(
        rule=rule,
        threshold=_threshold(fields["threshold"]),
        router=None if router is None else Router.from_json(router),
        small=dict(fields["small"]),
        large=dict(fields["large"]),
        # No rule reads the large model's state.
        decoding={"small": small, "large": {**large, "hidden_layer": None}},
        text={name: dict(part) for name, part in fields.get("text", {}).items()},
        expected=dict(fields["expected"]),
        is_old=is_old,
    )


def _threshold(value: Any) -> float:
    """A finite number, or infinity for null, which never defers."""
    if value is None:
        return math.inf
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:
        raise UsageError(
            f"cascade.json: threshold is {value_text(value)}; expected a finite number, or null to "
            "defer nothing; rerun caskd eval --operating-point"
        )
    return float(value)


def _decoding(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The decoding settings, with values that decoding can take."""
    length, stop = fields.get("max_new_tokens", 1), fields.get("stop", [])
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise UsageError(
            f"cascade.json: max_new_tokens is {length!r}, expected 1 or more; rerun caskd eval"
        )
    for texts in (stop, *dict(fields.get("stop_by_task", {})).values()):
        if not isinstance(texts, list) or not all(isinstance(one, str) and one for one in texts):
            raise UsageError(
                f"cascade.json: stop is {texts!r}, expected non-empty texts; rerun caskd predict"
            )
    return dict(fields)


def _identity(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: model.get(name) for name in _IDENTITY}
