"""`caskd predict`: requests, the predictor, and parts shared by workers.

Names are imported when they are first used: reading predictions needs no torch.
"""

from typing import TYPE_CHECKING

from caskd.store.imports import lazy_exports

if TYPE_CHECKING:
    from caskd.eval.inference.predictor import batches, predict
    from caskd.eval.inference.requests import question_text, read_questions, with_questions

__all__ = ["batches", "predict", "question_text", "read_questions", "with_questions"]

__getattr__ = lazy_exports(
    __name__,
    {
        "batches": "predictor",
        "predict": "predictor",
        "question_text": "requests",
        "read_questions": "requests",
        "with_questions": "requests",
    },
)
