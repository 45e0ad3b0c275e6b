"""Next-token accuracy and cascades under teacher forcing, from a store."""

from caskd.eval.next_token.report import NEXT_TOKEN_FILES, next_token_report

__all__ = [
    "NEXT_TOKEN_FILES",
    "next_token_report",
]
