"""Delegation in training: which rows teach the CALL token, its loss, and its column."""

from caskd.train.delegation.call_column import add_call_column, add_call_token, delegation_share
from caskd.train.delegation.call_loss import CallTerms, Delegation, call_terms
from caskd.train.delegation.choice import (
    CELLS,
    NOTHING,
    DelegateRows,
    Threshold,
    cells_of,
    chosen_rows,
    threshold_for,
)
from caskd.train.delegation.history import DelegationShare
from caskd.train.delegation.marks import Marks, read_marks
from caskd.train.delegation.row_source import DelegateReader, delegate_fields

__all__ = [
    "CELLS",
    "NOTHING",
    "CallTerms",
    "DelegateReader",
    "DelegateRows",
    "Delegation",
    "DelegationShare",
    "Marks",
    "Threshold",
    "add_call_column",
    "add_call_token",
    "call_terms",
    "cells_of",
    "chosen_rows",
    "delegate_fields",
    "delegation_share",
    "read_marks",
    "threshold_for",
]
