"""Answers of a model in a vLLM engine, with the columns of those that transformers writes."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caskd.models.decoding import (
    Answer,
    Sampling,
    StopTexts,
    answer_end,
    answer_text,
    max_positions_of,
    model_identity,
)
from caskd.models.devices import pick_device
from caskd.models.engines.vllm_engine import (
    MAX_REQUESTS,
    EngineError,
    EngineOptions,
    VllmEngine,
    check_version,
    vllm_version,
)
from caskd.models.engines.vllm_worker import Recorded, answer_request
from caskd.models.opening import (
    ADAPTER_CONFIG,
    check_safetensors,
    load_dtype_of,
    locate,
    open_config,
    open_empty,
    open_generation_config,
    open_tokenizer,
)
from caskd.models.vocabulary import call_id, stop_ids
from caskd.store.errors import UsageError

BATCH_TOKENS = 8192
"""Tokens of one pass of the engine; longer prompts are split."""
_MIXIN = "caskd.models.engines.vllm_worker.StepWorker"
_PROCESSOR = "caskd.models.engines.vllm_steps:StepProcessor"


@dataclass(frozen=True)
class EngineQuestion:
    """What is asked of an engine.

    Attributes:
        prompt: token ids.
        stop: texts that end the answer.
        options: first tokens of its options.
        key: name of the answer for its draws.
    """

    prompt: Sequence[int]
    stop: Sequence[str] = ()
    options: Sequence[int] = ()
    key: str = ""


@dataclass(frozen=True)
class TimedAnswer:
    """An answer, and its share of the time of the passes that wrote it, in seconds."""

    answer: Answer
    seconds: float


@dataclass(frozen=True)
class EngineModel:
    """A checkpoint on this machine that a vLLM engine can answer with. Find it with `find`."""

    options: EngineOptions
    tokenizer: Any
    stop_ids: tuple[int, ...]
    """Ids that end an answer: those of the generation config and of the tokenizer."""
    identity: dict[str, Any]
    """Name, revision, digests, sizes and dtype, as those of `LoadedModel`; and the engine."""
    max_positions: int | None
    call_id: int | None

    @classmethod
    def find(
        cls, source: str, flag: str, *, dtype: str = "auto", tensor_parallel: int = 1
    ) -> "EngineModel":
        """Open the tokenizer and the config; starts no engine.

        Args:
            source: a folder or a hub id.
            flag: the option that named it.
            dtype: in which it computes; `auto` is that of the files.
            tensor_parallel: devices that share each layer.

        Raises:
            UsageError: there is no such checkpoint, or no vLLM that caskd supports.
        """
        release, tested = check_version(vllm_version(), "--backend vllm")
        subject = f"{flag} {source}"
        if not tested:
            raise UsageError(
                f"--backend vllm: vllm {release} is not a tested release for answers; expected "
                "one; run pip install 'caskd[vllm]', or serve the model and pass --backend server"
            )
        _check_whole(source, subject)
        found = locate(source, flag)
        check_safetensors(found.folder, subject)
        config = open_config(found.folder, flag)
        tokenizer = open_tokenizer(found.folder, flag)
        model = open_empty(found.folder, flag, name=found.name)
        computed = load_dtype_of(config.get_text_config(), dtype)
        identity = {
            **model_identity(source, model, tokenizer),
            "dtype": computed,
            "engine": "vllm",
            "engine_version": release,
            "tensor_parallel": tensor_parallel,
        }
        options = EngineOptions(
            folder=found.folder,
            subject=f"{flag} {found.name}",
            dtype=computed,
            tensor_parallel=tensor_parallel,
            max_length=0,
            batch_tokens=BATCH_TOKENS,
            mixin=_MIXIN,
            processor=_PROCESSOR,
        )
        generation = open_generation_config(found.folder)
        return cls(
            options=options,
            tokenizer=tokenizer,
            stop_ids=stop_ids(tokenizer, model.generation_config, generation),
            identity=identity,
            max_positions=max_positions_of(config),
            call_id=call_id(config, tokenizer, subject),
        )

    @property
    def device(self) -> str:
        """Where the engine computes: `cuda` or `cpu`."""
        return pick_device("auto").type

    def start(self, longest_prompt: int, max_new_tokens: int) -> "VllmGenerator":
        """Start the engine, for prompts and answers of at most these tokens.

        Raises:
            EngineError: it does not start.
        """
        options = replace(self.options, max_length=longest_prompt + max_new_tokens)
        return VllmGenerator(self, VllmEngine(options), max_new_tokens)


def _check_whole(source: str, subject: str) -> None:
    folder = Path(source)
    if (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
        raise UsageError(
            f"{subject}: is an adapter, and the engine runs whole checkpoints; expected one; merge "
            "the adapter into its base model, or omit --backend vllm"
        )


@dataclass
class _Running:
    """An answer under way."""

    number: int
    question: EngineQuestion
    stops: StopTexts
    ids: list[int] = field(default_factory=list)
    text_end: int | None = None
    ended: bool = False
    seconds: float = 0.0

    def take(self, ids: Sequence[int], ended: bool) -> None:
        """Add its next tokens, up to the one that completes a stop text."""
        self.ended = ended
        for token in ids:
            self.ids.append(token)
            if self.stops.complete(self.ids):
                self.text_end = len(self.ids)
                return


class VllmGenerator:
    """A running engine that answers.

    Args:
        model: that it runs.
        engine: the engine.
        max_new_tokens: of the longest answer, with the token that ends it.
    """

    def __init__(self, model: EngineModel, engine: VllmEngine, max_new_tokens: int) -> None:
        self.model, self.engine, self.max_new_tokens = model, engine, max_new_tokens
        self._num_begun = 0

    def answers(
        self, questions: Iterable[EngineQuestion], sampling: Sampling | None = None
    ) -> Iterator[TimedAnswer]:
        """The answers, in the order of the questions; many are written together.

        Args:
            questions: read as the engine gets room for more.
            sampling: how tokens are drawn; None for the likeliest each time.

        Raises:
            EngineError: the engine died, or its figures are not those of its tokens.
        """
        waiting, written, due = enumerate(questions), dict[int, TimedAnswer](), 0
        running: dict[str, _Running] = {}
        while True:
            while len(running) < MAX_REQUESTS and (wanted := next(waiting, None)) is not None:
                running |= self._begin(*wanted, sampling)
            while due in written:
                yield written.pop(due)
                due += 1
            if not running:
                return
            written |= self._step(running)

    def _begin(
        self, number: int, question: EngineQuestion, sampling: Sampling | None
    ) -> dict[str, _Running]:
        name, self._num_begun = str(self._num_begun), self._num_begun + 1
        asked = answer_request(
            name,
            options=question.options,
            banned=self.model.call_id,
            sampling=sampling,
            key=question.key,
        )
        self.engine.begin(
            name,
            question.prompt,
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.model.stop_ids,
            extra=asked,
        )
        return {name: _Running(number, question, StopTexts(self.model.tokenizer, question.stop))}

    def _step(self, running: dict[str, _Running]) -> dict[int, TimedAnswer]:
        """Write one token more of the answers that run; those that have ended, by their number."""
        began = time.perf_counter()
        produced = self.engine.step()
        share = (time.perf_counter() - began) / len(running)
        for answer in running.values():
            answer.seconds += share
        for name, (ids, ended) in produced.items():
            if name in running:
                running[name].take(ids, ended)
        cut = [n for n, answer in running.items() if answer.text_end is not None]
        unfinished = [name for name in cut if not running[name].ended]
        if unfinished:
            self.engine.end(unfinished)
        ready = [n for n, answer in running.items() if answer.ended or n in cut]
        recorded = self.engine.call("caskd_steps", ready)[0] if ready else []
        found = {}
        for name, figures in zip(ready, recorded, strict=True):
            answer = running.pop(name)
            found[answer.number] = TimedAnswer(self._answer(answer, figures), answer.seconds)
        return found

    def _answer(self, answer: _Running, recorded: Recorded) -> Answer:
        """An answer with its figures.

        Raises:
            EngineError: they are not those of its tokens.
        """
        end = answer_end(answer.ids, self.model.stop_ids, answer.text_end)
        ids, steps = answer.ids[:end], recorded[0][:end]
        if [token for token, *_ in steps] != ids:
            raise EngineError(
                f"--backend vllm: its steps have the tokens {[step[0] for step in steps][:8]}, and "
                f"the answer {ids[:8]}; expected the same ones; serve the model and pass --backend "
                "server, and report it with the versions of vllm and torch"
            )
        text = answer_text(self.model.tokenizer, ids)
        return Answer(
            answer.stops.cut(text),
            ids,
            [step[1] for step in steps],
            [step[2] for step in steps],
            [step[3] for step in steps],
            option_logprobs=recorded[1],
        )

    def close(self) -> None:
        """End the engine's processes."""
        self.engine.close()
