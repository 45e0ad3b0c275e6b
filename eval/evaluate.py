"""`caskd eval`: a report on cascades, or on next-token predictions against a store's teacher."""

from typing import Any

from caskd.eval.config import EvalConfig


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Write the report that the flags ask for.

    Returns:
        The content of `summary.json`.

    Raises:
        UsageError: a file is missing or not a predictions file, a flag is wrong, or `out` holds
            something else.
        IdentityError: predictions that do not belong together.
    """
    if config.next_token is not None:
        from caskd.eval.next_token import evaluate_next_token

        return evaluate_next_token(config)
    from caskd.eval.report import evaluate_cascades

    return evaluate_cascades(config)
