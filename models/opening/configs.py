"""Open the config, the tokenizer and the generation config of a checkpoint, without its code."""

from pathlib import Path
from typing import Any

from caskd.models.opening.locating import (
    WHOLE,
    check_openable,
    check_reachable,
    check_source,
    opening_errors,
)
from caskd.store.errors import UsageError


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
    expected = f"a transformers tokenizer that needs no remote code: pass another {flag}"
    with opening_errors(source, flag, "tokenizer", expected):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


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
