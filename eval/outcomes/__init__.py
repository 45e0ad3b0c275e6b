"""Outcome tables: quality, score and cost of each model's answers, measured by anybody."""

from caskd.eval.outcomes.tables import CALLS, MONEY, OutcomeTable, read_table

__all__ = ["CALLS", "MONEY", "OutcomeTable", "read_table"]
