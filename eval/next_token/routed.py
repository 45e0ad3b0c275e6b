"""A fitted router among the rules of next tokens, and quality against the share of large tokens.

Legend: N rows.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from caskd.eval.config import EvalConfig
from caskd.eval.curves import deferral_curve
from caskd.eval.next_token.measure import OFFLINE_RULES, StudentResult
from caskd.store.errors import UsageError

if TYPE_CHECKING:
    from caskd.eval.next_token.teacher_forcing import StoreRows
    from caskd.models.decoding import TokenRouter

_SHARES = (0.1, 0.2, 0.3, 0.5)
_RANDOM, _ORACLE, _OWN = "random", "oracle", "router, its threshold"
Rows = TypeVar("Rows")


def check_router_flags(config: EvalConfig) -> None:
    """Refuse a router beside several students, and a number of parameters below 1.

    Raises:
        UsageError: names the flag.
    """
    if config.router is not None and len(config.student) > 1:
        raise UsageError(
            f"--router {config.router}: was given with {len(config.student)} students; expected "
            "the one that it was fitted for; pass one --student"
        )
    if config.teacher_parameters is not None and config.teacher_parameters < 1:
        raise UsageError(
            f"--teacher-parameters {config.teacher_parameters}: expected 1 or more; pass another "
            "number"
        )


def unseen_rows(router: "TokenRouter", teacher: "StoreRows", flag: str) -> npt.NDArray[np.bool_]:
    """Which rows [N] have questions that the router was not fitted on.

    Raises:
        UsageError: there are none.
    """
    unseen = ~np.isin(teacher.question_digests, router.questions)
    if not unseen.any():
        raise UsageError(
            f"{flag}: was fitted on every question of the store's examples; expected questions "
            "that it has not seen; pass another store, or omit --limit"
        )
    return unseen


def rows_of(rows: Rows, chosen: npt.NDArray[np.bool_]) -> Rows:
    """The chosen rows of a dataclass of arrays [N]."""
    names = [field.name for field in fields(rows)]  # type: ignore[arg-type]
    return type(rows)(**{name: getattr(rows, name)[chosen] for name in names})


def share_rows(
    result: StudentResult, teacher_parameters: int | None, router: "TokenRouter | None"
) -> Iterator[dict[str, Any]]:
    """Accuracy, acceptable quality and mean activated parameters by rule and share of large tokens.

    A token of the teacher is always acceptable. Every token activates the student, and for the rule
    `router` the router (R2R, arXiv 2505.21600).
    """
    from caskd.eval.next_token.router_rows import acceptable

    kept = acceptable(result.rows.right, result.rows.choice_ratio)
    ones = np.ones_like(kept)
    own = result.identity.get("num_active_parameters", result.identity["num_parameters"])
    for rule, curve in result.curves.items():
        curves = (curve, deferral_curve(OFFLINE_RULES[rule](result.rows), kept, ones))
        extra = router.num_parameters if rule == "router" and router is not None else 0
        points = [(rule, share) for share in _SHARES]
        if rule == "router" and router is not None:
            points.append((_OWN, float((result.rows.routed >= router.threshold).mean())))
        for name, share in points:
            found = [one.quality_at(share) for one in curves]
            yield _row(result, name, share, found, own + extra, teacher_parameters)
    for share in _SHARES:
        straight = [np.interp(share, (0, 1), one.quality[[0, -1]]) for one in curves]
        yield _row(result, _RANDOM, share, straight, own, teacher_parameters)
    for share in _SHARES:
        best = [np.interp(share, one.oracle_rate, one.oracle_quality) for one in curves]
        yield _row(result, _ORACLE, share, best, own, teacher_parameters)


def _row(
    result: StudentResult,
    rule: str,
    share: float,
    qualities: list[Any],
    own: int,
    teacher_parameters: int | None,
) -> dict[str, Any]:
    large = teacher_parameters
    return {
        "student": result.label,
        "rule": rule,
        "large_share": share,
        "accuracy": float(qualities[0]),
        "acceptable": float(qualities[1]),
        "activated_parameters": None if large is None else own + share * large,
    }
