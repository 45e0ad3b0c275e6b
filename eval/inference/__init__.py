"""`caskd predict`: requests, models and batched decoding."""

from caskd.eval.inference.predictor import batches, predict
from caskd.eval.inference.requests import question_text, read_questions, with_questions

__all__ = [
    "batches",
    "predict",
    "question_text",
    "read_questions",
    "with_questions",
]
