"""Next-token accuracy and cascades under teacher forcing, and routers of tokens, from a store."""

from caskd.eval.next_token.audit import store_audit_command
from caskd.eval.next_token.report import NEXT_TOKEN_FILES, next_token_report
from caskd.eval.next_token.router_command import router_fit_command

__all__ = [
    "NEXT_TOKEN_FILES",
    "next_token_report",
    "router_fit_command",
    "store_audit_command",
]
