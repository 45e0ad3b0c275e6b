"""Decoding: a model opened with its tokenizer, and greedy answers of a batch."""

from caskd.models.decoding.greedy import Answer, decode_batch, hidden_index
from caskd.models.decoding.loaded_model import LoadedModel, load_for_decoding

__all__ = ["Answer", "LoadedModel", "decode_batch", "hidden_index", "load_for_decoding"]
