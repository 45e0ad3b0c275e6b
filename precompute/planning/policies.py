"""What happens to examples that cannot be taken as they are: decided once, said in one line."""

from collections.abc import Mapping
from typing import Any

from caskd.precompute.config import PrecomputeConfig
from caskd.store.errors import TeacherError, UsageError


def check_examples(config: PrecomputeConfig, facts: Mapping[str, Any], max_length: int) -> None:
    """Refuse a corpus whose policies say so, once all of it has been seen.

    Args:
        config: has the policies.
        facts: of the corpus, as `Survey.facts` gives them.
        max_length: tokens that an example may have.

    Raises:
        UsageError: names how many examples, the first of them, and the flag to type.
    """
    problems = {
        "too_long": (
            config.on_long,
            f"longer than {max_length:,} tokens (the longest has {facts['longest_over_limit']:,})",
            "type --on-long truncate or --on-long skip, or give a larger --max-length",
        ),
        "empty": (
            config.on_empty,
            "without a response token to predict",
            "type --on-empty skip, or mend the data",
        ),
        "out_of_vocabulary": (
            config.on_out_of_vocabulary,
            "with a token that the teacher's vocabulary does not have",
            "type --on-out-of-vocabulary skip, or give the teacher its own tokenizer",
        ),
    }
    total = sum(facts["examples"].values())
    for status, (policy, what, advice) in problems.items():
        count = facts["examples"].get(status, 0)
        if count and policy == "error":
            are = "is" if count == 1 else "are"
            raise UsageError(
                f"{count:,} of {total:,} examples {are} {what}, the first is record "
                f"{facts['first'][status]}; {advice}"
            )


def check_non_finite(num_non_finite: int, num_examples: int, max_share: float) -> None:
    """Stop a capture whose teacher answers with NaN or Inf more often than is accepted.

    Args:
        num_non_finite: examples with such a row so far.
        num_examples: examples of the whole store, so that one early accident stops nothing.
        max_share: share of them that is accepted; 0 stops at the first, 1 never.

    Raises:
        TeacherError: there are more.
    """
    if num_non_finite > max_share * num_examples:
        raise TeacherError(
            f"the teacher gave NaN or Inf in {num_non_finite:,} of {num_examples:,} examples, "
            f"expected at most a share of {max_share:g}; type --dtype bfloat16 or float32, or "
            "--max-non-finite 1 to keep such rows without a teacher"
        )
