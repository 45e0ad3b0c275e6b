"""Flags of `caskd eval` that exclude or need each other."""

from collections.abc import Sequence

from caskd.eval.config import EvalConfig
from caskd.store.errors import UsageError, given_without

_NEED_ANSWERS = (
    "rule", "calibration_small", "calibration_large", "task_metric", "bleu", "data",
    "token_cascade",
)  # fmt: skip
"""Fields that read stored answers, which an outcome table does not have."""


def check_flags(config: EvalConfig, small: Sequence[str]) -> None:
    """Refuse flags that are missing or contradict each other, before any file is read.

    Args:
        config: flags of the command.
        small: values of --small, or without it those of --chain.

    Raises:
        UsageError: as described.
    """
    if config.outcomes:
        _check_outcome_flags(config)
    if not small:
        raise UsageError(
            "--small: no small model; expected one or more; pass --small FILE, once for each"
        )
    if not config.large:
        raise UsageError("--large: no large model; expected one; pass --large FILE")
    of_next_tokens = {
        f"--student {' '.join(config.student)}": bool(config.student),
        f"--limit {config.limit}": config.limit is not None,
        f"--router {config.router}": config.router is not None,
        f"--teacher-parameters {config.teacher_parameters}": config.teacher_parameters is not None,
        "--accept-imported": config.accept_imported,
    }
    for given, is_given in of_next_tokens.items():
        if is_given:
            raise UsageError(given_without(given, "--next-token STORE"))
    if bool(config.calibration_small) != (config.calibration_large is not None):
        raise UsageError(
            "--calibration-small and --calibration-large: only one was given; expected both or "
            "neither; pass both"
        )
    if config.calibration_small and config.calibration is not None:
        raise UsageError(
            "--calibration and --calibration-small: both were given; expected one of them; omit "
            "the other"
        )
    if config.calibration_small and len(config.calibration_small) != len(small):
        raise UsageError(
            f"--calibration-small: got {len(config.calibration_small)} for {len(small)} small "
            "models; expected one each; pass them in the same order"
        )


def _check_outcome_flags(config: EvalConfig) -> None:
    given = [name for name in _NEED_ANSWERS if getattr(config, name)]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(
            f"{flags}: was given with --outcomes; expected only with predictions files, because a "
            "table has no answers and one score; omit it"
        )
