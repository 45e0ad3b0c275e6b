"""`caskd predict --backend vllm`: the answers of a model in a vLLM engine of this process."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version

from caskd.eval.config import PredictConfig
from caskd.eval.inference.ready import Ready, Row, answer_row, metadata_of, tasks_of
from caskd.eval.inference.requests import EvalExample, build_requests, check_requests
from caskd.eval.tasks import Task
from caskd.models.decoding import check_stop_texts
from caskd.models.engines import EngineModel, EngineQuestion, vllm_version
from caskd.store.corpus import Record

_PACKAGES = ("torch", "transformers")


@contextmanager
def engine_answers(config: PredictConfig, records: Sequence[Record]) -> Iterator[Ready]:
    """Check the requests, and answer them with an engine that starts with the first one.

    Raises:
        UsageError: a record, a flag or the model is wrong, or vLLM is missing.
        EngineError: the engine does not start, or died.
    """
    model = EngineModel.find(
        config.model, "--model", dtype=config.dtype, tensor_parallel=config.tensor_parallel
    )
    requests, chat = build_requests(model.tokenizer, records, config)
    check_requests(requests, model.max_positions, config.max_new_tokens)
    tasks = tasks_of(config, requests)
    check_stop_texts(model.tokenizer, [text for task in tasks.values() for text in task.stop])
    metadata = metadata_of(
        config,
        requests,
        tasks,
        chat,
        model=model.identity,
        decoding={"stop_ids": list(model.stop_ids), "device": model.device},
        versions={
            "vllm": str(vllm_version()),
            **{name: version(name) for name in _PACKAGES},
        },
    )
    longest = max(len(request.prompt) for request in requests)

    def rows(batches: Iterable[Sequence[EvalExample]]) -> Iterator[list[Row]]:
        return _rows(model, longest, config.max_new_tokens, tasks, batches)

    yield Ready(requests, tasks, metadata, rows, lambda written: [])


def _rows(
    model: EngineModel,
    longest: int,
    max_new_tokens: int,
    tasks: dict[str, Task],
    batches: Iterable[Sequence[EvalExample]],
) -> Iterator[list[Row]]:
    """Rows of each batch; later batches are begun before the first one is complete."""
    wanted = [list(batch) for batch in batches]
    questions = (
        EngineQuestion(request.prompt, tasks[request.task].stop, request.option_ids)
        for batch in wanted
        for request in batch
    )
    with closing(model.start(longest, max_new_tokens)) as generator:
        answers = generator.answers(questions)
        for batch in wanted:
            yield [
                answer_row(request, found.answer, tasks[request.task], found.seconds)
                for request, found in zip(batch, answers, strict=False)
            ]
