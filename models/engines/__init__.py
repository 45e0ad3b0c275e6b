"""Models in other processes: a vLLM engine, and clients of vLLM's and SGLang's servers."""

from caskd.models.engines.answer_shapes import FILTERED, Question, ServedAnswer
from caskd.models.engines.backend_flags import check_flags
from caskd.models.engines.fingerprint import (
    ask_fingerprint,
    fixed_prompts,
    key_of,
    measure_fingerprint,
)
from caskd.models.engines.generation import ServedGenerator
from caskd.models.engines.http_client import (
    CONCURRENCY,
    TOKEN_VARIABLE,
    RequestRefusedError,
    ServerError,
    server_url,
)
from caskd.models.engines.least_busy import LeastBusy
from caskd.models.engines.prompt_rows import CLAMPED, NonFiniteError, PromptRows, ordered_rows
from caskd.models.engines.served_model import ServedModel
from caskd.models.engines.vllm_engine import (
    EngineError,
    EngineOptions,
    VllmEngine,
    check_version,
    vllm_version,
)
from caskd.models.engines.vllm_generation import (
    EngineModel,
    EngineQuestion,
    TimedAnswer,
    VllmGenerator,
)
from caskd.models.engines.vllm_worker import EngineWorker

__all__ = [
    "CLAMPED",
    "CONCURRENCY",
    "FILTERED",
    "TOKEN_VARIABLE",
    "EngineError",
    "EngineModel",
    "EngineOptions",
    "EngineQuestion",
    "EngineWorker",
    "LeastBusy",
    "NonFiniteError",
    "PromptRows",
    "Question",
    "RequestRefusedError",
    "ServedAnswer",
    "ServedGenerator",
    "ServedModel",
    "ServerError",
    "TimedAnswer",
    "VllmEngine",
    "VllmGenerator",
    "ask_fingerprint",
    "check_flags",
    "check_version",
    "fixed_prompts",
    "key_of",
    "measure_fingerprint",
    "ordered_rows",
    "server_url",
    "vllm_version",
]
