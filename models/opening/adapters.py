"""The settings of a peft adapter, read before peft follows them."""

from pathlib import Path
from typing import Any

from caskd.models.opening.locating import ADAPTER_CONFIG
from caskd.store.errors import UsageError, reason
from caskd.store.io import StrangeFileError, read_json_object, value_text

_MAX_RANK = 1 << 16
_MAX_NAMES = 10_000  # peft compares each name with each layer, and some names with one another


def read_adapter_settings(folder: Path, subject: str) -> dict[str, Any]:
    """The settings of the adapter in `folder`.

    Raises:
        UsageError: they cannot be read, or peft would need all memory or hours for them.
    """
    try:
        settings = read_json_object(folder / ADAPTER_CONFIG)
    except (OSError, StrangeFileError) as error:
        raise UsageError(
            f"{subject}: {ADAPTER_CONFIG}: {reason(error)}; expected the settings of a peft "
            "adapter; save it with save_pretrained, or pass another one"
        ) from None
    for field, value in settings.items():
        if isinstance(value, list | dict) and len(value) > _MAX_NAMES:
            raise UsageError(
                f"{subject}: {ADAPTER_CONFIG} has {len(value):,} entries in {value_text(field)}; "
                f"expected at most {_MAX_NAMES:,}; name layers by their last part, or pass "
                "another adapter"
            )
    pattern = settings.get("rank_pattern")
    ranks = [settings.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    for rank in ranks:
        if isinstance(rank, int) and not 0 < rank <= _MAX_RANK:
            raise UsageError(
                f"{subject}: {ADAPTER_CONFIG} has the rank {value_text(rank)}; expected 1 to "
                f"{_MAX_RANK:,}; pass another adapter"
            )
    return settings
