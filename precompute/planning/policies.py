"""Policies for examples that cannot be captured as they are, and the errors they raise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caskd.precompute.config import PrecomputeConfig
from caskd.store.commits import commit_record
from caskd.store.errors import IdentityError, TeacherError, UsageError
from caskd.store.format import StoreSpec
from caskd.store.io import counted


def check_examples(config: PrecomputeConfig, facts: Mapping[str, Any], max_length: int) -> None:
    """Refuse a corpus with examples whose policy is `error`, after all of it has been read.

    Args:
        config: holds the policies.
        facts: of the corpus, as `CorpusStats.facts` returns them.
        max_length: tokens that an example may have.

    Raises:
        UsageError: with the number of examples, the first record, and the flag to pass.
    """
    problems = {
        "too_long": (
            config.on_long,
            f"longer than {max_length:,} tokens (the longest has {facts['longest_over_limit']:,})",
            "pass --on-long truncate or --on-long skip, or a larger --max-length",
        ),
        "empty": (
            config.on_empty,
            "without a response token to predict",
            "pass --on-empty skip, or fix the data",
        ),
        "out_of_vocabulary": (
            config.on_out_of_vocabulary,
            "with a token or a text outside the teacher's vocabulary",
            "pass --on-out-of-vocabulary skip, or save the teacher with its own tokenizer",
        ),
        "chat_refused": (
            config.on_bad_chat,
            "refused by the chat template",
            f"pass --on-bad-chat skip; the first one: {facts['text']['first_refusal']}",
        ),
    }
    total = sum(facts["examples"].values())
    for status, (policy, problem, advice) in problems.items():
        count = facts["examples"].get(status, 0)
        if count and policy == "error":
            are = "is" if count == 1 else "are"
            raise UsageError(
                f"{count:,} of {total:,} examples {are} {problem}, the first is record "
                f"{facts['first'][status]}; expected none; {advice}"
            )


def check_planned_flags(config: PrecomputeConfig, planned: StoreSpec) -> None:
    """Refuse plan flags with another value than a planned store has, outside its identity.

    Raises:
        IdentityError: names the flag, its value and the planned one.
    """
    rows = config.shard_rows
    if rows is not None and rows != planned.shard_rows:
        raise IdentityError(
            f"--shard-rows {rows}: {config.store} is planned with {planned.shard_rows}; expected "
            "the planned value; omit the flag, or plan a new store with another --store"
        )
    statuses = commit_record.read_record(Path(config.store), commit_record.PLAN).facts["statuses"]
    for flag, value, status in (
        ("--on-empty", config.on_empty, "empty"),
        ("--on-bad-chat", config.on_bad_chat, "chat_refused"),
        ("--on-out-of-vocabulary", config.on_out_of_vocabulary, "out_of_vocabulary"),
    ):
        count = statuses.get(status, 0)
        if value == "error" and count:
            raise IdentityError(
                f"{flag} {value}: {config.store} is planned with skip, and skipped "
                f"{counted(count, 'example')}; expected the planned value; pass {flag} skip, or "
                "plan a new store with another --store"
            )


def check_non_finite(num_non_finite: int, num_examples: int, max_share: float) -> None:
    """Stop a capture whose teacher produces NaN or Inf in too many examples.

    Args:
        num_non_finite: number of examples with such a row so far.
        num_examples: number of examples of the whole store, so that one early NaN stops nothing.
        max_share: largest accepted share of them; 0 stops at the first, 1 never.

    Raises:
        TeacherError: the share is larger.
    """
    if num_non_finite > max_share * num_examples:
        raise TeacherError(
            f"--teacher: produced NaN or Inf in {num_non_finite:,} of {num_examples:,} examples; "
            f"expected a share of {max_share:g} or less; pass --max-non-finite 1 to store "
            "those rows without teacher values, or --dtype bfloat16 or float32 with another --store"
        )
