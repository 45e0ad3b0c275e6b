"""Results of a study as sentences, for the terminal and the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from caskd.eval.stats import McNemar
from caskd.eval.study import FIXED_RATE, Contrast, Guarantee, OperatingPoint, TokenCascadePoint


def questions_line(num_examples: int, num_questions: int) -> str:
    """How many examples and questions there are, and which of them intervals resample."""
    line = f"{num_examples:,} examples of {num_questions:,} questions"
    if num_examples == num_questions:
        return line
    return f"{line}; intervals and tests resample questions, each with all of its examples"


def difference_line(contrast: Contrast, resampled: str = "examples") -> str:
    """A paired difference of areas in words.

    Args:
        contrast: the difference.
        resampled: what its interval resamples besides seeds, examples or questions.
    """
    difference = contrast.difference
    seeds, alone = difference.num_seeds, difference.over_seeds
    over = resampled if seeds == 1 else f"{resampled} and {seeds} seeds"
    line = (
        f"AUDC of {contrast.first} minus {contrast.second}: {difference.value:+.4f}, "
        f"95 % interval over {over} [{difference.low:+.4f}, {difference.high:+.4f}] "
        f"({difference.num_replicates:,} bootstrap replicates, seed {difference.seed})"
    )
    if alone is not None:
        line += f", over seeds alone [{alone.low:+.4f}, {alone.high:+.4f}] ({alone.kind})"
    return f"{line}: {difference.verdict}"


def mcnemar_line(first: str, second: str, test: McNemar) -> str:
    """Two cascades at one deferral rate, in words."""
    return (
        f"At thresholds that defer {FIXED_RATE:.0%}: only {first} is right {test.only_first:,} "
        f"times, only {second} {test.only_second:,} times, McNemar p = {test.p_value:.3g}: "
        f"{test.verdict}"
    )


_VERDICTS = {
    "the first is better": "the cascade is better",
    "the second is better": "the large model is better",
}


def point_lines(point: OperatingPoint) -> list[str]:
    """An operating point in words: the choice, then its estimates."""
    test = point.against_large
    rule = f"{point.scores.rule}, threshold {point.threshold:.6g}"
    estimates = {
        "quality": (point.quality, ".4f"),
        "deferral rate": (point.deferral_rate, ".4f"),
        point.cost_unit: (point.cost, ".4g"),
    }
    return [
        f"Operating point for {point.constraint}: {point.result.label}, rule {rule} "
        f"(chosen on the {point.chosen_on} examples)",
        *(
            f"  {name} {value.mean:{form}}, 95 % interval [{value.low:{form}}, {value.high:{form}}]"
            for name, (value, form) in estimates.items()
        ),
        f"  against the large model alone: only the cascade is right {test.only_first:,} times, "
        f"only the large model {test.only_second:,} times, McNemar p = {test.p_value:.3g}: "
        f"{_VERDICTS.get(test.verdict, test.verdict)}",
    ]


def guarantee_lines(guarantee: Guarantee | None) -> list[str]:
    """What is promised, then a line for each threshold; nothing without `--guarantee`."""
    if guarantee is None:
        return []
    quantity = guarantee.promise.quantity
    return [
        f"Guarantee {guarantee.promise}, from {guarantee.num_questions:,} calibration questions:",
        *(
            f"  {row['small']}, rule {row['rule']}: {_threshold(row)}; on the test examples "
            f"{quantity} {row[quantity]:.4f}, deferral rate {row['deferral_rate']:.4f}, quality "
            f"{row['quality']:.4f}"
            for row in guarantee.rows
        ),
    ]


def _threshold(row: Mapping[str, Any]) -> str:
    return row["answer"] if row["threshold"] is None else f"threshold {row['threshold']:.6g}"


def token_cascade_lines(points: Sequence[TokenCascadePoint]) -> list[str]:
    """A line for each token cascade: quality, and what it computed."""
    return [
        f"Token cascade {point.label}, {point.rule}: quality {point.quality:.4f}, "
        f"{point.large_share:.1%} of the tokens from the large model, "
        f"{point.large_forwards_per_token:.3f} of its forwards and {point.flops_per_token:.3g} "
        "FLOPs per token"
        for point in points
    ]
