"""Results of a study as sentences, for the terminal and the page."""

from caskd.eval.stats import McNemar
from caskd.eval.study import FIXED_RATE, Contrast, OperatingPoint


def difference_line(one: Contrast) -> str:
    """A paired difference of areas in words."""
    difference = one.difference
    seeds, alone = difference.num_seeds, difference.over_seeds
    over = "examples" if seeds == 1 else f"examples and {seeds} seeds"
    return (
        f"AUDC of {one.first} minus {one.second}: {difference.value:+.4f}, "
        f"95 % interval over {over} [{difference.low:+.4f}, {difference.high:+.4f}] "
        f"({difference.num_draws:,} draws, seed {difference.seed})"
        + (f", over seeds alone [{alone.low:+.4f}, {alone.high:+.4f}] ({alone.kind})"
           if alone else "")
        + f": {difference.verdict}"
    )  # fmt: skip


def mcnemar_line(first: str, second: str, test: McNemar) -> str:
    """Two cascades at one deferral rate, in words."""
    return (
        f"At thresholds that defer {FIXED_RATE:.0%}: {first} alone is right {test.only_first:,} "
        f"times, {second} alone {test.only_second:,} times, McNemar p = {test.p_value:.3g}: "
        f"{test.verdict}"
    )


def point_lines(point: OperatingPoint) -> list[str]:
    """An operating point in words."""
    test = point.against_large
    rule = f"{point.scored.rule}, threshold {point.threshold:.6g}"
    estimates = {
        "quality": (point.quality, ".4f"),
        "deferral rate": (point.deferral_rate, ".4f"),
        point.cost_unit: (point.cost, ".4g"),
    }
    return [
        f"Operating point for {point.wish}: {point.measured.label}, rule {rule} "
        f"(chosen on the {point.chosen_on} examples)",
        *(
            f"  {name} {one.mean:{form}}, 95 % interval [{one.low:{form}}, {one.high:{form}}]"
            for name, (one, form) in estimates.items()
        ),
        f"  against the large model alone: right where it is wrong {test.only_first:,} times, "
        f"wrong where it is right {test.only_second:,} times, McNemar p = {test.p_value:.3g}: "
        + {"the first is better": "the cascade is better",
           "the second is better": "the large model is better"}.get(test.verdict, test.verdict),
    ]  # fmt: skip
