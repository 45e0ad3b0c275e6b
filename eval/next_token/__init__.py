"""Next-token accuracy and cascades under teacher forcing, from a store."""

from caskd.eval.next_token.report import evaluate_next_token

__all__ = [
    "evaluate_next_token",
]
