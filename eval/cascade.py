"""A small and a large model joined on the examples that both answered."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import DeferralCurve, deferral_curve
from caskd.eval.predictions import Predictions, read_predictions
from caskd.eval.rules import deferral_scores
from caskd.store.errors import IdentityError

FloatArray = npt.NDArray[np.float64]


class Cascade:
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
            IdentityError: they hold other examples, other questions or references, or measure
                quality in another way.
        """
        self.small = small.take(_places(small, large))
        self.large = large
        _check_questions(self.small, large)
        self.small_quality = self.small.numbers("quality")
        self.large_quality = large.numbers("quality")
        self.tasks = large.strings("task")

    @classmethod
    def from_files(cls, small: str, large: str) -> "Cascade":
        """Join two files of `caskd predict`.

        Raises:
            UsageError: a file is missing or not a predictions file.
            IdentityError: they do not belong together.
        """
        return cls(read_predictions(small), read_predictions(large))

    def __len__(self) -> int:
        return len(self.large)

    def score(self, rule: str = "average") -> FloatArray:
        """Deferral score [E] of the small model's answers under a rule.

        Raises:
            UsageError: unknown rule.
        """
        return deferral_scores(self.small.token_logprobs(), rule)

    def curve(self, rule: str = "average", task: str | None = None) -> DeferralCurve:
        """Deferral curve over all examples, or over those of one task with thresholds of its own.

        Raises:
            UsageError: unknown rule, or no example of this task.
        """
        where = np.array([task is None or own == task for own in self.tasks])
        return deferral_curve(
            self.score(rule)[where], self.small_quality[where], self.large_quality[where]
        )


def _places(small: Predictions, large: Predictions) -> npt.NDArray[np.int64]:
    """For each example of `large` its place in `small`."""
    place = {name: i for i, name in enumerate(small.strings("example_id"))}
    wanted = large.strings("example_id")
    missing = [name for name in wanted if name not in place]
    surplus = sorted(place.keys() - set(wanted))
    if missing or surplus:
        found = [f"{len(surplus):,} only in {small.source}{_first(surplus)}"] if surplus else []
        found += [f"{len(missing):,} only in {large.source}{_first(missing)}"] if missing else []
        raise IdentityError(
            f"different examples: {', '.join(found)}; expected the same in both: "
            "run caskd predict for both models with the same --data and --limit"
        )
    return np.array([place[name] for name in wanted], dtype=np.int64)


def _check_questions(small: Predictions, large: Predictions) -> None:
    """Same examples must mean same questions, same references and the same measure of quality."""
    if small.metadata["quality"] != large.metadata["quality"]:
        raise IdentityError(
            f"{small.source} measures {small.metadata['quality']}, {large.source} measures "
            f"{large.metadata['quality']}; expected one measure: run caskd predict again for one"
        )
    columns = ["question_digest", "reference", "task"]
    same_tokenizer = small.metadata["model"].get("tokenizer_digest") == large.metadata["model"].get(
        "tokenizer_digest"
    )
    if same_tokenizer:  # then the questions must agree to the token, chat template included
        columns.append("prompt_digest")
    for column in columns:
        ours, theirs = small.strings(column), large.strings(column)
        unlike = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        if unlike:
            name = large.strings("example_id")[unlike[0]]
            raise IdentityError(
                f"{len(unlike):,} examples (first {name!r}) have another {column} in "
                f"{small.source} than in {large.source}; expected the same: "
                "run caskd predict for both models with the same --data and columns"
            )


def _first(names: Sequence[str]) -> str:
    return f" (first {names[0]!r})"
