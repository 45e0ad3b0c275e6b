"""`caskd predict`: requests, models and batched decoding.

Names are imported on first use, so that reading requests imports no torch.
"""

from typing import TYPE_CHECKING

from caskd.store.imports import lazy_exports

if TYPE_CHECKING:
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

__getattr__ = lazy_exports(
    __name__,
    {
        "Answer": "decoding",
        "LoadedModel": "models",
        "batches": "predictor",
        "decode_batch": "decoding",
        "load_model": "models",
        "predict": "predictor",
        "question_text": "requests",
        "read_questions": "requests",
        "with_questions": "requests",
    },
)
