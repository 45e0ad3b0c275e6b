"""Serving a cascade: cascade.json, and the object that answers prompts."""

from caskd.eval.serving.cascade import Cascade
from caskd.eval.serving.cascade_file import cascade_fields

__all__ = [
    "Cascade",
    "cascade_fields",
]
