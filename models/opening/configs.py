"""Open the config, the tokenizer and the generation config of a checkpoint, without its code."""

from pathlib import Path
from stat import S_ISREG
from typing import Any

from caskd.models.opening.locating import (
    WHOLE,
    check_openable,
    check_reachable,
    check_source,
    opening_errors,
)
from caskd.store.corpus import vocab_size
from caskd.store.errors import UsageError

_MAX_VOCAB_SIZE = 1 << 24
_MAX_TOKENIZER_BYTES = 128 << 20
"""Four times the largest of known tokenizers, of 256,000 tokens."""


def open_config(source: str | Path, flag: str) -> Any:
    """The model's config.

    Raises:
        UsageError: it cannot be opened.
    """
    from transformers import AutoConfig

    check_source(source, flag)
    check_reachable(source, flag)
    with opening_errors(source, flag, "config", f"{WHOLE}: pass another {flag}"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    kernel = str(getattr(config, "_attn_implementation", None))
    if "/" in kernel:
        raise UsageError(
            f"{flag} {source}: its config.json names the attention kernel {kernel!r}, which is "
            "code of the hub; expected no kernel: remove the key attn_implementation, or pass "
            f"another {flag}"
        )
    return config


def open_tokenizer(source: str | Path, flag: str) -> Any:
    """The model's tokenizer.

    Raises:
        UsageError: it cannot be opened.
    """
    from transformers import AutoTokenizer

    check_openable(source, flag)
    _check_size(Path(source) / "tokenizer.json", flag)
    expected = f"a transformers tokenizer that needs no remote code: pass another {flag}"
    with opening_errors(source, flag, "tokenizer", expected):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        size = vocab_size(tokenizer)
    if size > _MAX_VOCAB_SIZE:  # tables of all ids, and tokenizers itself, would walk through them
        raise UsageError(
            f"{flag} {source}: its tokenizer gives a token the id {size - 1:,}; expected ids below "
            f"{_MAX_VOCAB_SIZE:,}; correct its tokenizer.json, or pass another {flag}"
        )
    return tokenizer


def _check_size(file: Path, flag: str) -> None:
    """Refuse a tokenizer file that would take minutes and all memory, or that no reader ends.

    Raises:
        UsageError: it is larger than any tokenizer, or a pipe or a device.
    """
    try:
        status = file.stat()
    except OSError:
        return  # transformers names what is missing
    if not S_ISREG(status.st_mode):
        problem = "is no regular file"
    elif status.st_size > _MAX_TOKENIZER_BYTES:
        problem = f"has {status.st_size:,} bytes"
    else:
        return
    raise UsageError(
        f"{flag} {file.parent}: its {file.name} {problem}; expected a file of at most "
        f"{_MAX_TOKENIZER_BYTES:,} bytes; copy it again, or pass another {flag}"
    )


def open_generation_config(source: str | Path) -> Any:
    """The model's generation config; without such a file the one that its config implies; None
    for a folder that holds neither, such as an adapter."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source, trust_remote_code=False)
    except OSError:
        pass
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return GenerationConfig.from_model_config(config)


def load_dtype_of(text_config: Any, dtype: str) -> str:
    """The dtype in which a model computes: its own one for `auto`."""
    own = getattr(text_config, "dtype", None) or "float32"
    return str(own).removeprefix("torch.") if dtype == "auto" else dtype
