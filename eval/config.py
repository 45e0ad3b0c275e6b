"""What `caskd predict` and `caskd eval` are told: each field is a flag, its docstring the help."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Decode greedily, in batches, and store every answer with its token log-probabilities."""

    model: str
    """The model that answers: a folder or a hub id that transformers can open."""
    data: tuple[str, ...]
    """Files with the examples: JSONL, Parquet, Arrow or CSV."""
    out: str
    """Parquet file to write; it must not exist yet."""
    prompt_column: str = "prompt"
    """Column with the question."""
    response_column: str = "response"
    """Column with the expected answer."""
    messages_column: str = "messages"
    """Column with a chat, whose last assistant turn is the expected answer."""
    task_column: str = "task"
    """Column with the name of the task, for figures per task."""
    max_new_tokens: int = 128
    """Longest answer in tokens, the end-of-sequence token included."""
    batch_size: int = 16
    """Examples decoded at once; the answers do not depend on it, up to rounding."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto keeps that of the files."""
    device: str = "auto"
    """Where to run: cpu, cuda, cuda:1; auto takes the GPU where there is one."""
    limit: int | None = None
    """Answer only the first so many examples."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measure cascades: one curve for each small model against the same large one."""

    small: tuple[str, ...]
    """Predictions of a small model (from `caskd predict`); repeat the flag to compare several."""
    large: str
    """Predictions of the large model on the same examples."""
    out: str
    """Folder for the report: figures, tables and index.html."""
