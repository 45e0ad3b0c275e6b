"""A cascade with a chosen threshold as a file and as an object that answers."""

from caskd.eval.serving.cascade import Cascade
from caskd.eval.serving.cascade_file import cascade_fields

__all__ = [
    "Cascade",
    "cascade_fields",
]
