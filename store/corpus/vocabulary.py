"""The vocabulary as bytes, and digests that compare the tokenizers of two models.

The caller passes a transformers tokenizer.
"""

import hashlib
import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"  # SentencePiece's mark of a space


def vocab_size(tokenizer: Any) -> int:
    """V: the tokenizer's largest id + 1, added tokens included."""
    return int(max(tokenizer.get_vocab().values())) + 1


def token_bytes(tokenizer: Any) -> list[bytes]:
    """Bytes of each token: index = id, length V; an unused id has b"".

    Byte-level BPE, SentencePiece's space mark and its byte tokens are mapped back to bytes; the
    tokens of other vocabularies and added tokens are encoded as UTF-8.
    """
    vocab: dict[str, int] = tokenizer.get_vocab()
    added = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items()}
    decode = _token_decoder(tokenizer, vocab)
    tokens = [b""] * vocab_size(tokenizer)
    for token, id_ in vocab.items():
        tokens[id_] = added[id_].encode() if id_ in added else decode(token)
    return tokens


def vocab_digest(tokens: list[bytes]) -> str:
    """sha256 over the bytes of all tokens in order of id, each after its length."""
    digest = hashlib.sha256()
    for token in tokens:
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 over everything that maps text to ids: normaliser, pre-tokeniser, merges, template.

    Truncation and padding are excluded: they are the caller's state, not the tokenizer's.
    """
    content: dict[str, Any] = {
        "pipeline": tokenizer_pipeline(tokenizer),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
    }
    if content["pipeline"] is None:
        content["pipeline"] = [type(tokenizer).__name__, tokenizer.get_vocab()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def vocabulary_identity(tokenizer: Any, tokens: list[bytes]) -> dict[str, Any]:
    """Fields of `identity.vocabulary` in store.json; `tokens` are the tokenizer's `token_bytes`.

    `eos_id` and `bos_id` are null where the tokenizer has no such token.
    """
    return {
        "size": len(tokens),
        "digest": vocab_digest(tokens),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        **special_tokens(tokenizer),
    }


def special_tokens(tokenizer: Any) -> dict[str, Any]:
    """`eos_id`, `bos_id`, and `special_ids`: all ids that are markup and never text, ascending."""
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(id_ for id_, token in added if token.special)}
    return {
        "eos_id": _id_or_none(tokenizer.eos_token_id),
        "bos_id": _id_or_none(tokenizer.bos_token_id),
        "special_ids": sorted(int(id_) for id_ in special if id_ is not None),
    }


def _id_or_none(id_: int | None) -> int | None:
    return None if id_ is None else int(id_)


def template_digest(tokenizer: Any, override: str | None = None) -> str:
    """sha256 of the chat template: the tokenizer's, or another in its place."""
    template = tokenizer.chat_template if override is None else override
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()


def tokenizer_pipeline(tokenizer: Any) -> dict[str, Any] | None:
    """The fast tokenizer's description as JSON; None for a tokenizer written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    pipeline: dict[str, Any] = json.loads(backend.to_str())
    pipeline["truncation"] = pipeline["padding"] = None
    return pipeline


def text_bytes(tokenizer: Any, backend: Any, text: str) -> bytes:
    """Bytes of a text as the tokens spell it: after the normaliser of `backend`, if there is one.

    Args:
        tokenizer: whose tokens `token_bytes` describes.
        backend: a fast tokenizer whose normaliser inserts no prefix, or None.
        text: without added tokens.
    """
    if backend is not None and backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    return _text_decoder(tokenizer)(text)


@lru_cache(maxsize=4)
def _text_decoder(tokenizer: Any) -> Callable[[str], bytes]:
    pipeline = tokenizer_pipeline(tokenizer) or {}
    if "ByteLevel" in _stages(pipeline.get("normalizer")):
        return _token_decoder(tokenizer, tokenizer.get_vocab())
    if _token_decoder(tokenizer, tokenizer.get_vocab()) is _from_sentencepiece:
        return lambda text: text.replace(_SPACE_MARK, " ").encode()
    return str.encode


def _token_decoder(tokenizer: Any, vocab: dict[str, int]) -> Callable[[str], bytes]:
    pipeline = tokenizer_pipeline(tokenizer) or {}
    stages = _stages(pipeline.get("decoder"))
    if pipeline.get("decoder") is None:  # the other stages tell how tokens spell bytes
        stages = (_stages(pipeline.get("pre_tokenizer")) | _stages(pipeline.get("normalizer"))) & {
            "ByteLevel",
            "Metaspace",
            "Prepend",
        }
    if "ByteLevel" in stages or "\u0120the" in vocab:
        table = _byte_level_table()
        return lambda token: _from_byte_level(token, table)
    if stages & {"Metaspace", "ByteFallback", "Replace", "Prepend"} or "<0x0A>" in vocab:
        return _from_sentencepiece
    return str.encode


def _stages(stage: dict[str, Any] | None) -> set[str]:
    """Types of a stage and of the stages inside it."""
    if stage is None:
        return set()
    inside = [*stage.get("decoders", []), *stage.get("normalizers", [])]
    nested = [_stages(part) for part in [*inside, *stage.get("pretokenizers", [])]]
    return {stage["type"]}.union(*nested)


def _byte_level_table() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes map to themselves, others to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _from_byte_level(token: str, table: dict[str, int]) -> bytes:
    if all(char in table for char in token):
        return bytes(table[char] for char in token)
    return token.encode()


def _from_sentencepiece(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    if match:
        return bytes([int(match.group(1), 16)])
    return token.replace(_SPACE_MARK, " ").encode()
