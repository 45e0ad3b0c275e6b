"""Predictions of a small and a large model, joined on their examples."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import SERVED, Predictions, Ragged, Units, num_units, question_units
from caskd.eval.rules.fixed import deferral_scores, fixed_rule, unknown_rule
from caskd.store.errors import IdentityError, UsageError

FloatArray = npt.NDArray[np.float64]


class Pair:
    """Two models on the same examples, in the large model's order.

    Attributes:
        small: answers of the small model.
        large: answers of the large model.
        small_quality: [E] quality of the small model's answers.
        large_quality: [E] quality of the large model's answers.
        tasks: task of each example.
    """

    def __init__(self, small: Predictions, large: Predictions) -> None:
        """Join two sets of predictions by example id.

        Raises:
            IdentityError: their examples, questions, references or metrics differ.
        """
        self.small = small.take(_indices_in(small, large))
        self.large = large
        _check_questions(self.small, large)
        self.small_quality = self.small.numbers("quality")
        self.large_quality = large.numbers("quality")
        self.tasks = large.strings("task")

    @cached_property
    def units(self) -> Units:
        """[E] question of each example, the unit of resampling; None if none is repeated."""
        return question_units(self.large.strings("question_digest"))

    @property
    def num_questions(self) -> int:
        """Number of different questions."""
        return num_units(self.units, len(self))

    @property
    def has_cost(self) -> bool:
        """Whether the main cost of both models is known."""
        return self.small.has_cost and self.large.has_cost

    def __len__(self) -> int:
        return len(self.large)

    def take(self, indices: npt.NDArray[np.int64]) -> "Pair":
        """The examples at these indices."""
        return Pair(self.small.take(indices), self.large.take(indices))

    def score(self, rule: str) -> FloatArray:
        """Deferral score [E] of the small model's answers by a fixed rule.

        Raises:
            UsageError: the rule is unknown, or the predictions lack its column.
        """
        found = fixed_rule(rule)
        if found is None:
            raise unknown_rule(rule)
        return deferral_scores(self.lists(found.column), found)

    def has(self, name: str) -> bool:
        """Whether the small model's predictions have a column with any value."""
        columns = self.small.columns
        return name in columns.column_names and columns.column(name).null_count < len(self)

    def lists(self, name: str) -> Ragged:
        """A list column of the small model's answers.

        Raises:
            UsageError: the predictions lack it.
        """
        self._check_has(name)
        return Ragged.of_column(self.small.columns.column(name))

    def texts(self, name: str) -> list[str]:
        """A text column of the small model's answers.

        Raises:
            UsageError: the predictions lack it.
        """
        self._check_has(name)
        return self.small.strings(name)

    def _check_has(self, name: str) -> None:
        if not self.has(name):
            how = {
                "prompt": "pass the questions with --data",
                "hidden": "rerun caskd predict with --hidden",
                "score": "pass a table with --outcomes",
            }
            if self.small.metadata["model"].get("engine") == SERVED:
                served = "serve the model with one that gives them, or answer in this process"
                how |= dict.fromkeys(("token_logprobs", "token_margins", "token_entropies"), served)
            raise UsageError(
                f"{self.small.source}: holds no {name}; expected one value per example; "
                f"{how.get(name, 'rerun caskd predict')}, or omit the rule that reads it"
            )


def _indices_in(small: Predictions, large: Predictions) -> npt.NDArray[np.int64]:
    """Index in `small` of each example of `large`."""
    index = {name: i for i, name in enumerate(small.strings("example_id"))}
    wanted = large.strings("example_id")
    missing = [name for name in wanted if name not in index]
    surplus = sorted(index.keys() - set(wanted))
    if missing or surplus:
        found = [f"{len(surplus):,} only in {small.source}{_first(surplus)}"] if surplus else []
        found += [f"{len(missing):,} only in {large.source}{_first(missing)}"] if missing else []
        raise IdentityError(
            f"{small.source} and {large.source}: different examples, {', '.join(found)}; expected "
            "the same in both; run caskd predict for both models with the same --data and --limit"
        )
    return np.array([index[name] for name in wanted], dtype=np.int64)


def _check_questions(small: Predictions, large: Predictions) -> None:
    """Examples of the same id must have the same question, references and metric."""
    if small.metadata["quality"] != large.metadata["quality"]:
        raise IdentityError(
            f"{small.source} and {large.source}: metrics are {small.metadata['quality']} and "
            f"{large.metadata['quality']}; expected one metric; rerun caskd predict for one of them"
        )
    rules = [model.metadata.get("text", {}).get("rule", 1) for model in (small, large)]
    if rules[0] != rules[1]:
        raise IdentityError(
            f"{small.source} has text rule {rules[0]}, {large.source} has {rules[1]}: prompts "
            "became tokens in different ways, expected one rule; rerun caskd predict for both"
        )
    columns = ["question_digest", "reference", "task"]
    digests = [model.metadata["model"].get("tokenizer_digest") for model in (small, large)]
    served = [model.metadata["model"].get("engine") for model in (small, large)]
    if digests[0] == digests[1] and not (any(served) and None in digests):
        # Then prompts must be equal token by token, chat template included.
        columns.append("prompt_digest")
    for column in columns:
        ours, theirs = (
            model.references() if column == "reference" else model.strings(column)
            for model in (small, large)
        )
        unlike = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        if unlike:
            name = large.strings("example_id")[unlike[0]]
            raise IdentityError(
                f"{small.source} and {large.source}: {len(unlike):,} examples (first {name!r}) "
                f"differ in {column}; expected the same; run caskd predict for both models with "
                "the same --data and columns"
            )


def _first(names: Sequence[str]) -> str:
    return f" (first {names[0]!r})"
