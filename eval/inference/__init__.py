"""`caskd predict`: requests, models and batched decoding."""

from caskd.eval.inference.decoding import Answer, decode_batch
from caskd.eval.inference.models import LoadedModel, load_model
from caskd.eval.inference.predictor import batches, predict
from caskd.eval.inference.requests import question_text, read_questions, with_questions

__all__ = [
    "Answer",
    "LoadedModel",
    "batches",
    "decode_batch",
    "load_model",
    "predict",
    "question_text",
    "read_questions",
    "with_questions",
]
