"""`caskd precompute --sample-responses`: the teacher answers every record of a corpus."""

from functools import partial
from pathlib import Path

from caskd.precompute.backend_flags import check_backend
from caskd.precompute.command_config import PrecomputeCommand
from caskd.precompute.config import check_numbers
from caskd.precompute.responses.answering import open_answering
from caskd.precompute.responses.writing import Target, check_answers, write_answers
from caskd.store.errors import UsageError, unread_flags
from caskd.store.io import tell

_FLAG = "--sample-responses"
_READ = frozenset(
    {
        "teacher", "data", "prompt_column", "response_column", "messages_column", "text_column",
        "task_column", "chat_template", "template_arguments", "train_template_tokens",
        "on_bad_text", "dtype", "backend", "url", "served_model", "server_concurrency",
        "tensor_parallel", "device", "token_budget", "worker", "num_workers", "sample_responses",
        "temperature", "seed", "max_new_tokens", "api",
    }
)  # fmt: skip
"""Fields of the config that answers read; the others are of a capture."""


def sample_responses(config: PrecomputeCommand, file: str) -> None:
    """Write the teacher's answers as a JSONL corpus, or those of this worker.

    Answers are the same for any number of workers and after any kill; they depend on batches only
    through the rounding of the kernels.

    Raises:
        UsageError: a flag, the data or the teacher cannot be used.
        IdentityError: existing parts, or a finished file, belong to another request.
        ServerError: a server does not answer.
    """
    target = Target(Path(file), _FLAG, f"caskd precompute {_FLAG}")
    _check(config, target)
    opening = partial(open_answering, config)
    if write_answers(config, target, opening) is not None:
        tell(f"next: caskd precompute --teacher TEACHER --data {file} --store STORE")


def _check(config: PrecomputeCommand, target: Target) -> None:
    """Refuse flags that answers do not read, before any work.

    Raises:
        UsageError: names the flag and what to do.
    """
    for name, value in unread_flags(config, _READ).items():
        switch = name if value else name.replace("--", "--no-", 1)
        flag = switch if isinstance(value, bool) else f"{name} {value}"
        raise UsageError(
            f"{_FLAG} and {flag}: both were given; expected one of them, answers are a corpus "
            f"and no store; omit {flag}, and capture {target.out} afterwards"
        )
    if not config.teacher and not (config.backend == "server" and config.api == "chat"):
        raise UsageError("--teacher: missing; expected a folder or a hub id; pass --teacher ID")
    _check_runner(config)
    check_answers(config, target)
    check_numbers(config)


def _check_runner(config: PrecomputeCommand) -> None:
    """Refuse flags that have no meaning for what answers."""
    check_backend(config)
    rendered_there = config.api == "chat" and config.backend == "server"
    refused = {
        "--api chat": (config.api == "chat" and not rendered_there, "without --backend server"),
        f"--tensor-parallel {config.tensor_parallel}": (
            config.tensor_parallel != 1 and config.backend != "vllm",
            f"with {_FLAG} and --backend {config.backend}, whose model runs on one device",
        ),
        "--chat-template": (rendered_there and config.chat_template is not None, "with --api chat"),
        "--train-template-tokens": (
            rendered_there and config.train_template_tokens,
            "with --api chat",
        ),
    }
    for flag, (given, why) in refused.items():
        if given:
            raise UsageError(f"{flag}: was given {why}; expected one of the two; omit {flag}")
