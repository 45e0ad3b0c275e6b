"""What the demo prints besides its commands: words explained, and the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORDS = {
    "train": (
        "keep: the share of tokens that count in the loss. xent keeps all; cat-xent only those "
        "whose label the student or the teacher would choose."
    ),
    "predict": (
        "log-probabilities: a model gives one to each token of its answer. Their average is its "
        "confidence."
    ),
    "eval": (
        "deferral: a question on which the small model is not confident goes to the large one. "
        "AUDC: the area under quality against the share of deferred questions; 1 is best. random "
        "and oracle: the same where chance, or the right answers, choose them. APGR: how much of "
        "the gap between both models the cascade closes, on average."
    ),
}
"""What a command's words mean, printed before it runs for the first time."""


def closing(out: Path, seconds: dict[str, float], summary: Mapping[str, Any]) -> str:
    """Final output: durations, paths, the result in a sentence, and commands for own data.

    Args:
        out: folder of the demo.
        seconds: by stage.
        summary: content of the report's summary.json.
    """
    width = max(map(len, seconds))
    times = [f"  {stage.ljust(width)}  {spent:6.1f} s" for stage, spent in seconds.items()]
    return "\n".join(
        [
            "",
            *times,
            f"  {'total'.ljust(width)}  {sum(seconds.values()):6.1f} s",
            "",
            f"the report        {out / 'report' / 'index.html'}",
            f"the store         {out / 'store'}",
            f"the models        {out / 'models'}",
            f"training metrics  {out / 'runs'}",
            "",
            result(summary),
            f"The picture: {out / 'report' / 'deferral_curve.png'}",
            "",
            "The same with your own data (prompt and response, or messages) and models:",
            "",
            "  caskd init my-project --data train.jsonl --teacher BIG_MODEL --student SMALL_MODEL",
            "  sh my-project/run.sh",
            "  caskd status my-project/run --watch    # from another terminal",
        ]
    )


def result(summary: Mapping[str, Any]) -> str:
    """The result of the demo in a sentence."""
    first, second = summary["smalls"][:2]
    figures, other = first["all"], second["all"]
    return (
        f"With 30 % of the questions deferred to the teacher, the cascade of {first['name']} "
        f"answers {figures['quality_at_30']:.0%} correctly, and that of {second['name']} "
        f"{other['quality_at_30']:.0%}; alone the students answer "
        f"{figures['quality_small']:.0%} and {other['quality_small']:.0%}, "
        f"the teacher {figures['quality_large']:.0%}."
    )
