"""`caskd predict --backend server`: the answers of a model behind one or several URLs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from caskd.eval.answers import SERVED, Predictions
from caskd.eval.config import PredictConfig
from caskd.eval.inference.asked import build_asked
from caskd.eval.inference.ready import Ready, Row, metadata_of, row_of, tasks_of
from caskd.eval.inference.requests import (
    EvalExample,
    build_requests,
    check_requests,
)
from caskd.eval.tasks import Task
from caskd.models import (
    build_model,
    check_servable,
    config_digest,
    count_parameters,
    locate,
    open_config,
    open_tokenizer,
)
from caskd.models.engines import FILTERED, Question, ServedGenerator
from caskd.store.corpus import ChatOptions, Record, given_chat_options, tokenizer_digest

_FLAG = "--model"


@contextmanager
def served(config: PredictConfig, records: Sequence[Record]) -> Iterator[Ready]:
    """Open the servers for the length of a block.

    Raises:
        ServerError: one does not answer, or refuses a short question.
        UsageError: a record, a flag or the served model's name is wrong.
        IdentityError: the URLs answer as different models.
    """
    requests, chat, described = _requests(config, records)
    tasks = tasks_of(config, requests)
    opened = ServedGenerator.open(
        config.url,
        config.api,
        served_model=config.served_model,
        concurrency=config.server_concurrency,
    )
    with closing(opened) as generator:
        limit = generator.limit if described.get("tokenizer_digest") else None
        check_requests(requests, limit, config.max_new_tokens)
        metadata = _metadata(config, generator, described, requests, tasks, chat)

        def rows(batches: Iterable[Sequence[EvalExample]]) -> Iterator[list[Row]]:
            return _rows(generator, config, tasks, batches)

        yield Ready(
            requests, tasks, metadata, rows, lambda w: [*_lines(w), *generator.setting_lines()]
        )


def _requests(
    config: PredictConfig, records: Sequence[Record]
) -> tuple[list[EvalExample], ChatOptions, dict[str, Any]]:
    """The requests, how conversations are rendered, and what --model says of the served model."""
    described: dict[str, Any] = {"num_parameters": None}
    tokenizer = None
    if config.model:
        found = locate(config.model, _FLAG, weights=False)
        configured = open_config(found.folder, _FLAG)
        check_servable(configured, f"{_FLAG} {config.model}")
        count = count_parameters(build_model(configured, _FLAG, device="meta"))
        described = {
            "config_digest": config_digest(found.folder),
            "num_parameters": count.total,
            **({"num_active_parameters": count.active} if count.routed else {}),
        }
        if config.api == "completions":
            tokenizer = open_tokenizer(found.folder, _FLAG)
            described["tokenizer_digest"] = tokenizer_digest(tokenizer)
    if tokenizer is not None:
        return *build_requests(tokenizer, records, config), described
    given = given_chat_options(arguments=config.template_arguments)
    return build_asked(records, config), ChatOptions(**given), described


def _rows(
    generator: ServedGenerator,
    config: PredictConfig,
    tasks: dict[str, Task],
    batches: Iterable[Sequence[EvalExample]],
) -> Iterator[list[Row]]:
    """Rows of each batch; later batches are asked before the first one is complete."""
    wanted = [list(batch) for batch in batches]
    questions = (
        Question(
            request.prompt if request.asked is None else request.asked,
            config.max_new_tokens,
            stop=tasks[request.task].stop,
        )
        for batch in wanted
        for request in batch
    )
    answers = generator.answers(questions)
    for batch in wanted:
        yield [
            row_of(request, tasks[request.task], {"token_ids": None, **vars(answer)})
            for request, answer in zip(batch, answers, strict=False)
        ]


def _metadata(
    config: PredictConfig,
    generator: ServedGenerator,
    described: dict[str, Any],
    requests: Sequence[EvalExample],
    tasks: dict[str, Task],
    chat: ChatOptions,
) -> dict[str, Any]:
    return metadata_of(
        config,
        requests,
        tasks,
        chat,
        model={
            "name": generator.model,
            "engine": SERVED,
            "answers_as": generator.answers_as,
            **described,
        },
        decoding={
            "device": SERVED,
            "api": config.api,
            "log_probs": generator.form.log_probs,
            "server": generator.kind,
            "neutral_settings": sorted(generator.form.neutral),
        },
        versions={},
    )


def _lines(written: Predictions) -> list[str]:
    """What the server counted: tokens, refusals, cut answers."""
    read, wrote = (int(written.numbers(f"{name}_tokens").sum()) for name in ("prompt", "output"))
    refused, cut = written.num_finished_by(FILTERED), written.num_finished_by("length")
    lines = [
        f"{read:,} prompt tokens and {wrote:,} output tokens as the server counts them; "
        f"{refused:,} answers refused (content_filter), {cut:,} cut at --max-new-tokens"
    ]
    limit = written.metadata["decoding"]["max_new_tokens"]
    ended = zip(written.strings("finish_reason"), written.numbers("output_tokens"), strict=True)
    early = sum(reason == "length" and count < limit for reason, count in ended)
    if early:
        lines.append(
            f"{early:,} of the cut answers have fewer than {limit:,} tokens: the server has a "
            "limit of its own, its context or max_new_tokens of the model's generation_config.json"
        )
    if not written.metadata["decoding"]["log_probs"]:
        lines.append(
            "the server gives no log-probabilities of its answers: they have a quality alone, and "
            "serve as --large; as --small every rule that reads token_logprobs falls away"
        )
    return lines
