"""Token cascades: answers that two models wrote together, each file one point beside the curves.

Legend: E examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import CASCADE_COUNTS, Predictions, read_predictions, split_name
from caskd.eval.curves import flops_per_token
from caskd.eval.rules import Pair
from caskd.eval.study.rescoring import rescore
from caskd.store.errors import UsageError
from caskd.store.io import strip_control, value_text

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TokenCascadePoint:
    """Mean figures of one token cascade over the test examples.

    Costs count what was computed: rejected drafts of the small model, and every position that the
    large model scored, whichever model chose its token.
    """

    label: str
    rule: str
    """With its number, such as `token-v3 alpha=0.2`."""
    quality: float
    large_share: float
    """Share of tokens that the large model chose."""
    accepted_share: float | None
    """Share of drafted tokens that stand in an answer; None for a rule without drafts."""
    small_forwards_per_token: float
    large_forwards_per_token: float
    """Forward passes run one after another: the latency of both models is their sum."""
    flops_per_token: float
    """Of the answers' tokens: prompts are not counted, as on the paper's axis."""
    flops_per_example: float
    """Prompts counted."""
    seconds_per_example: float

    @property
    def row(self) -> dict[str, Any]:
        """For tables and the summary."""
        return asdict(self)


def read_token_cascades(
    files: Sequence[str], large: Predictions, task_metric: Sequence[str], *, is_split: bool
) -> list[TokenCascadePoint]:
    """Open and measure every `--token-cascade`.

    Args:
        files: FILE or NAME=FILE.
        large: answers of the large model to the test examples.
        task_metric: as in the flag.
        is_split: whether the files hold calibration examples too.

    Raises:
        UsageError: a file is missing, or holds the answers of one model.
        IdentityError: its examples, questions, references or metrics differ from the large model's.
    """
    return [_point(value, large, task_metric, is_split) for value in files]


def _point(
    value: str, large: Predictions, task_metric: Sequence[str], is_split: bool
) -> TokenCascadePoint:
    name, file = split_name(value)
    cascade = rescore(read_predictions(file), task_metric)
    parameters = _parameters(cascade)
    if is_split:
        tested = set(large.strings("example_id"))
        chosen = [i for i, one in enumerate(cascade.strings("example_id")) if one in tested]
        cascade = cascade.take(np.array(chosen, dtype=np.int64))
    cascade = Pair(cascade, large).small
    return _measure(strip_control(name or cascade.model_name), cascade, parameters)


def _measure(label: str, cascade: Predictions, parameters: Mapping[str, int]) -> TokenCascadePoint:
    totals = {name: float(cascade.numbers(name).sum()) for name in CASCADE_COUNTS}
    tokens = float(cascade.numbers("output_tokens").sum()) or 1.0
    prompt = cascade.numbers("prompt_tokens")
    whole, answers = np.zeros(len(cascade)), np.zeros(len(cascade))
    for model, number in parameters.items():
        computed = cascade.numbers(f"num_{model}_computed")
        whole += flops_per_token(number) * computed
        # A large model that chose no token has not read the prompt.
        answers += flops_per_token(number) * np.maximum(computed - prompt, 0.0)
    drafted = totals["num_drafted"]
    return TokenCascadePoint(
        label=label,
        rule=_rule_text(cascade.metadata["token_cascade"]),
        quality=float(cascade.numbers("quality").mean()),
        large_share=totals["num_large_tokens"] / tokens,
        accepted_share=totals["num_accepted"] / drafted if drafted else None,
        small_forwards_per_token=totals["num_small_forwards"] / tokens,
        large_forwards_per_token=totals["num_large_forwards"] / tokens,
        flops_per_token=float(answers.sum()) / tokens,
        flops_per_example=float(whole.mean()),
        seconds_per_example=float(cascade.numbers("seconds").mean()),
    )


def _parameters(cascade: Predictions) -> dict[str, int]:
    """Parameters of each model that a token uses.

    Raises:
        UsageError: the file holds the answers of one model, or does not describe two.
    """
    if not cascade.is_token_cascade:
        raise UsageError(
            f"--token-cascade {cascade.source}: holds the answers of one model, "
            f"{value_text(cascade.model_name)}; expected a file of caskd predict --large; "
            "pass it with --small"
        )
    described = cascade.metadata.get("token_cascade")
    found: dict[str, int] = {}
    for name in ("small", "large"):
        model = described.get(name) if isinstance(described, dict) else None
        if isinstance(model, dict):
            number = model.get("num_active_parameters") or model.get("num_parameters")
            if type(number) is int and number > 0:
                found[name] = number
    if len(found) == 2 and set(CASCADE_COUNTS) <= set(cascade.columns.column_names):
        return found
    raise UsageError(
        f"--token-cascade {cascade.source}: its metadata or columns do not describe two models; "
        "expected a file of caskd predict --large; rerun caskd predict"
    )


def _rule_text(described: Mapping[str, Any]) -> str:
    names = ("alpha", "threshold", "call_threshold", "p_th", "gamma")
    numbers = [f"{name}={value_text(described[name])}" for name in names if name in described]
    return strip_control(" ".join([str(described.get("rule")), *numbers]))
