"""The files of a store: their names relative to the store, and how JSON is written in them."""

import json
from typing import Any

STORE_JSON = "store.json"
DATA = "data.zarr"
COMMITS = "commits"
DIGEST_LIST = f"{COMMITS}/commits.sha256"
SEAL = "seal.json"
ENVIRONMENT = "environment"
README = "README.md"
STAGING = "staging"
"""Files of commits that are not decided yet, and drafts of copies; a sealed store has none."""


def canonical_json(value: Any) -> bytes:
    """The JSON bytes of `value`; equal content has equal bytes in every store."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()
