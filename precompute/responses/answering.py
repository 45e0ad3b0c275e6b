"""What answers questions: transformers in this process, a vLLM engine, or a server."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from caskd.models import (
    check_servable,
    check_template,
    locate,
    open_config,
    open_tokenizer,
    padded_batches,
)
from caskd.models.decoding import LoadedModel, load_for_decoding, respond
from caskd.models.engines import (
    FILTERED,
    EngineModel,
    EngineQuestion,
    Question,
    ServedAnswer,
    ServedGenerator,
)
from caskd.precompute.command_config import PrecomputeCommand
from caskd.precompute.responses.questions import TEXT_DIFFERS, answered, conversation
from caskd.precompute.responses.rereading import Rereading
from caskd.precompute.responses.writing import Answering, AnswersConfig, Response, sampling_of
from caskd.store.corpus import (
    CHAT_FLAGS,
    TEXT_RULE,
    ChatOptions,
    Columns,
    Record,
    check_chat_flags,
    given_chat_options,
    prompt_ids,
    tokenizer_digest,
)
from caskd.store.errors import UsageError
from caskd.store.io import parse_json, tell

_FLAG = "--teacher"
_BATCH = 16
"""Answers of a part, of what composes its own batches."""


class _Here:
    """A model in this process."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: list[list[int]],
        config: PrecomputeCommand,
        limit: int,
        rereading: Rereading,
    ) -> None:
        self._loaded, self._prompts, self._limit = loaded, prompts, limit
        self._rereading = rereading
        check_lengths(prompts, loaded.max_positions, limit)
        self._sampling = sampling_of(config)
        self.identity = {"teacher": loaded.identity, "stop_ids": list(loaded.stop_ids)}
        lengths = np.array([len(prompt) + limit for prompt in prompts], np.int64)
        found = padded_batches(lengths, config.token_budget)
        self.batches = [positions.tolist() for positions in found]

    def answers(self, batches: Iterable[Sequence[int]]) -> Iterator[list[Response]]:
        """As in `Answering`."""
        for batch in batches:
            prompts, keys = [self._prompts[index] for index in batch], list(map(str, batch))
            found = respond(self._loaded, prompts, keys, self._limit, self._sampling)
            yield [
                self._rereading.generated(index, ids, self._loaded.stop_ids)
                for index, ids in zip(batch, found, strict=True)
            ]


class _Engine:
    """A model in a vLLM engine, which starts with the first question."""

    def __init__(
        self,
        model: EngineModel,
        prompts: list[list[int]],
        config: PrecomputeCommand,
        limit: int,
        rereading: Rereading,
    ) -> None:
        self._model, self._prompts, self._limit = model, prompts, limit
        self._rereading = rereading
        check_lengths(prompts, model.max_positions, limit)
        self._sampling = sampling_of(config)
        self.identity = {"teacher": model.identity, "stop_ids": list(model.stop_ids)}
        self.batches = _in_order(len(prompts))

    def answers(self, batches: Iterable[Sequence[int]]) -> Iterator[list[Response]]:
        """As in `Answering`."""
        wanted = [list(batch) for batch in batches]
        questions = (EngineQuestion(self._prompts[i], key=str(i)) for b in wanted for i in b)
        longest = max(map(len, self._prompts))
        with closing(self._model.start(longest, self._limit)) as generator:
            found = generator.answers(questions, self._sampling)
            for batch in wanted:
                yield [
                    self._rereading.generated(index, timed.answer.token_ids, self._model.stop_ids)
                    for index, timed in zip(batch, found, strict=False)
                ]


def _in_order(count: int) -> list[list[int]]:
    return [list(range(start, min(start + _BATCH, count))) for start in range(0, count, _BATCH)]


class _Served:
    """A model behind URLs."""

    def __init__(
        self,
        generator: ServedGenerator,
        asked: list[Any],
        config: PrecomputeCommand,
        limit: int,
        rereading: Rereading | None,
    ) -> None:
        self._generator, self._asked, self._limit = generator, asked, limit
        self._rereading = rereading
        self._sampling = sampling_of(config)
        named = {"name": generator.model, "answers_as": generator.answers_as}
        asked_with = {"server": generator.kind, "neutral_settings": sorted(generator.form.neutral)}
        teacher = {"engine": "server", **named, "api": config.api, **asked_with}
        self.identity = {"teacher": teacher}
        self.batches = _in_order(len(asked))

    def answers(self, batches: Iterable[Sequence[int]]) -> Iterator[list[Response]]:
        """As in `Answering`."""
        wanted = [list(batch) for batch in batches]
        found = self._generator.answers(self._question(i) for batch in wanted for i in batch)
        for batch in wanted:
            yield [
                self._response(index, answer) for index, answer in zip(batch, found, strict=False)
            ]

    def _response(self, index: int, answer: ServedAnswer) -> Response:
        ended = answer.finish_reason
        found = Response(answer.text, finished=ended == "stop", refused=ended == FILTERED)
        if self._rereading is None:  # the server alone has the tokenizer
            return replace(found, counts={TEXT_DIFFERS: int(answer.withheld)})
        return self._rereading.served(index, found, answer.output_tokens)

    def _question(self, index: int) -> Question:
        drawn = self._sampling
        if drawn is None:
            return Question(self._asked[index], self._limit)
        key = hashlib.sha256(f"{drawn.seed}\n{index}".encode()).digest()
        seed = int.from_bytes(key[:4], "big") >> 1
        return Question(self._asked[index], self._limit, temperature=drawn.temperature, seed=seed)


@contextmanager
def open_answering(
    config: PrecomputeCommand, records: Sequence[Record], columns: Columns, limit: int
) -> Iterator[Answering]:
    """Open the teacher for the length of a block.

    Raises:
        UsageError: it does not open, or a record cannot be asked.
        ServerError: a server does not answer.
    """
    if config.backend == "transformers":
        loaded = load_for_decoding(config.teacher, _FLAG, dtype=config.dtype, device=config.device)
        prompts, text = prompts_of(loaded.tokenizer, config, _named(config), records, columns)
        reread = Rereading.of(loaded.tokenizer, records, columns, chat_of(config))
        here = _Here(loaded, prompts, config, limit, reread)
        here.identity["text"] = text
        yield here
        return
    if config.backend == "vllm":
        model = EngineModel.find(
            config.teacher, _FLAG, dtype=config.dtype, tensor_parallel=config.tensor_parallel
        )
        prompts, text = prompts_of(model.tokenizer, config, _named(config), records, columns)
        reread = Rereading.of(model.tokenizer, records, columns, chat_of(config))
        engine = _Engine(model, prompts, config, limit, reread)
        engine.identity["text"] = text
        yield engine
        return
    with _open_served(config, records, columns, limit) as served:
        yield served


@contextmanager
def _open_served(
    config: PrecomputeCommand, records: Sequence[Record], columns: Columns, limit: int
) -> Iterator[Answering]:
    asked: list[Any]
    reread = None
    if config.api == "chat":
        arguments = given_chat_options(arguments=config.template_arguments).get("arguments")
        given = {"chat_template_kwargs": parse_json(arguments)} if arguments else {}
        asked, text = [{**conversation(r, columns), **given} for r in records], given
    else:
        folder = locate(config.teacher, _FLAG, weights=False).folder
        check_servable(open_config(folder, _FLAG), _named(config))
        tokenizer = open_tokenizer(folder, _FLAG)
        asked, text = prompts_of(tokenizer, config, _named(config), records, columns)
        text["tokenizer_digest"] = tokenizer_digest(tokenizer)
        reread = Rereading.of(tokenizer, records, columns, chat_of(config))
    opened = ServedGenerator.open(
        config.url,
        config.api,
        served_model=config.served_model,
        concurrency=config.server_concurrency,
    )
    with closing(opened) as generator:
        for line in generator.setting_lines():
            tell(line)
        if config.api == "completions":
            check_lengths(asked, generator.limit, limit)
        served = _Served(generator, asked, config, limit, reread)
        served.identity["text"] = text
        yield served


def _named(config: PrecomputeCommand) -> str:
    return f"{_FLAG} {config.teacher}"


def prompts_of(
    tokenizer: Any,
    config: AnswersConfig,
    model: str,
    records: Sequence[Record],
    columns: Columns,
) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids of each question, as a capture shows them, and the rule behind them.

    Args:
        tokenizer: of the model.
        config: how conversations are rendered.
        model: the option that named the model and its value, for errors.
        records: the corpus.
        columns: where its questions stand.

    Raises:
        UsageError: a record cannot be asked.
    """
    chat, prompts = chat_of(config), []
    check_chat_flags(str(columns.kind), _given_options(config))
    if columns.kind == "messages" and config.chat_template is None:
        check_template(tokenizer, model)
    for index, record in enumerate(records):
        try:
            prompts.append(prompt_ids(tokenizer, answered(record, columns), columns, chat))
        except UsageError as error:
            raise UsageError(f"record {index}: {error}") from None
        if not prompts[-1]:
            raise UsageError(f"record {index}: has an empty prompt; expected a question; remove it")
    named = {name: getattr(chat, name) for name in CHAT_FLAGS}
    return prompts, {"rule": TEXT_RULE, **named}


def chat_of(config: AnswersConfig) -> ChatOptions:
    """How conversations are rendered."""
    return ChatOptions(**_given_options(config))


def _given_options(config: AnswersConfig) -> dict[str, Any]:
    return given_chat_options(
        config.chat_template, config.template_arguments, config.train_template_tokens
    )


def check_lengths(prompts: Sequence[Sequence[int]], most: int | None, limit: int) -> None:
    """Refuse a prompt that leaves less room than an answer may need.

    Raises:
        UsageError: names the record and the numbers.
    """
    for index, prompt in enumerate(prompts):
        if most is not None and len(prompt) + limit > most:
            raise UsageError(
                f"record {index}: {len(prompt):,} prompt tokens and --max-new-tokens {limit:,}; "
                f"expected at most the {most:,} tokens that the model takes; lower "
                "--max-new-tokens or remove that record"
            )
