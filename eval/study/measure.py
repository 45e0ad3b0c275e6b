"""Curves, figures and costs of a cascade, from joined predictions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import (
    MIN_GAP,
    DeferralCurve,
    Price,
    Shares,
    aurc,
    auroc,
    bleu_curve,
    calibration_error,
    curve_figures,
    deferral_curve,
    flops,
    money,
    ngram_counts,
    price_of,
    shares,
    tail_seconds,
    token_cost,
)
from caskd.eval.rules import Pair, RuleScores
from caskd.store.io import strip_control
from caskd.store.spacing import thin

FloatArray = npt.NDArray[np.float64]

ALL_TASKS = "all"
NO_TASK = "(no task)"
MAX_POINTS = 10_001


@dataclass(frozen=True, eq=False)
class RuleResult:
    """One rule on one small model."""

    scores: RuleScores
    curve: DeferralCurve
    """Thinned to `MAX_POINTS` points."""
    figures: Mapping[str, Any]
    """Curve figures over all points, and AUROC, AURC and ECE of the score."""
    token_flops: FloatArray
    """[P] FLOPs per token on the paper's axis; NaN if a model's parameters are not known."""


@dataclass(frozen=True, eq=False)
class CascadeResult:
    """One small model against the large one."""

    label: str
    arm: str
    pair: Pair
    rules: Mapping[str, RuleResult]
    """By name; all other fields are of the first rule, the main one."""
    tasks: Mapping[str, DeferralCurve]
    """A curve per task, each with its own thresholds; empty if there is a single task."""
    costs: Mapping[str, FloatArray]
    """[P] mean cost per example at each point: flops, seconds, and with prices money."""
    tail: tuple[FloatArray, FloatArray]
    """Deferral rates, and the 95th percentile of the seconds per example at each."""
    bleu: tuple[FloatArray, FloatArray] | None
    """Deferral rates, and corpus BLEU at each; None without `--bleu`."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % interval of the area by rule; `compare` fills them in."""

    @property
    def main(self) -> RuleResult:
        """The first rule."""
        return next(iter(self.rules.values()))

    @property
    def curve(self) -> DeferralCurve:
        """Curve of the first rule."""
        return self.main.curve

    @property
    def token_flops(self) -> FloatArray:
        """[P] FLOPs per token of the first rule."""
        return self.main.token_flops

    @property
    def has_flops(self) -> bool:
        """Whether the parameters of both models are known."""
        return self.pair.has_flops


def measure_cascade(
    label: str,
    arm: str,
    pair: Pair,
    scores: Mapping[str, RuleScores],
    *,
    prices: Mapping[str, Price] | None = None,
    bleu: str | None = None,
) -> CascadeResult:
    """Curves and costs of one cascade.

    Args:
        label: name of this small model in the report.
        arm: the arm of which it is one seed.
        pair: answers of both models.
        scores: scores by rule, the main rule first.
        prices: prices of tokens by model name.
        bleu: tokenizer for corpus BLEU; None for no corpus BLEU.

    Raises:
        UsageError: a model has no price, or sacrebleu has no such tokenizer.
    """
    first = next(iter(scores.values()))
    names = sorted(set(pair.tasks))
    tasks = np.array(pair.tasks, dtype=object)
    parts = {name: np.flatnonzero(tasks == name) for name in names} if len(names) > 1 else {}
    curve = deferral_curve(first.score, pair.small_quality, pair.large_quality)
    points = thin(curve.deferral_rate.size, MAX_POINTS)
    costs = cost_shares(pair, first, prices)
    return CascadeResult(
        label=label,
        arm=arm,
        pair=pair,
        rules={name: _rule_result(pair, rule_scores) for name, rule_scores in scores.items()},
        tasks={
            name: deferral_curve(
                first.score[part], pair.small_quality[part], pair.large_quality[part]
            )
            for name, part in parts.items()
        },
        costs={unit: cost.mean(first.score)[points] for unit, cost in costs.items()},
        tail=tail_seconds(first.score, costs["seconds"]),
        bleu=_bleu(pair, first.score, bleu) if bleu else None,
    )


def _rule_result(pair: Pair, scores: RuleScores) -> RuleResult:
    curve = deferral_curve(scores.score, pair.small_quality, pair.large_quality)
    points = thin(curve.deferral_rate.size, MAX_POINTS)
    thinned = replace(
        curve,
        **{
            name: getattr(curve, name)[points]
            for name in ("deferral_rate", "quality", "threshold", "a1", "a2", "random")
        },
    )
    oracle = thin(curve.oracle_rate.size, MAX_POINTS)
    thinned = replace(
        thinned,
        oracle_rate=curve.oracle_rate[oracle],
        oracle_quality=curve.oracle_quality[oracle],
    )
    rest = {
        "auroc": auroc(scores.score, pair.small_quality),
        "aurc": aurc(scores.score, pair.small_quality),
        "ece": None
        if scores.confidence is None
        else calibration_error(scores.confidence, pair.small_quality),
    }
    return RuleResult(
        scores=scores,
        curve=thinned,
        figures={**curve_figures(curve), **rest},
        token_flops=token_cost(
            thinned.deferral_rate,
            pair.small.num_active_parameters,
            pair.large.num_active_parameters,
            before_generation=scores.before_generation,
        ),
    )


def cost_shares(
    pair: Pair, scores: RuleScores, prices: Mapping[str, Price] | None
) -> dict[str, Shares]:
    """Cost of each example in flops, seconds and, with a price list, money.

    A rule on the small model's hidden state pays for reading the prompt. Its seconds count in full,
    because predictions files do not separate reading from writing.

    Raises:
        UsageError: a model has no price.
    """
    units = {"flops": (flops(pair.small), flops(pair.large))} if pair.has_flops else {}
    if prices is not None:
        models = (pair.small, pair.large)
        small, large = (money(model, price_of(prices, model.model_name)) for model in models)
        units["money"] = (small, large)
    found = {}
    for unit, ((read, written), (large_read, large_written)) in units.items():
        saved = written if scores.before_generation else None
        saved = read + written if scores.reads_prompt_alone else saved
        found[unit] = shares(read + written, large_read + large_written, saved=saved)
    seconds = pair.small.numbers("seconds")
    found["seconds"] = shares(
        seconds,
        pair.large.numbers("seconds"),
        saved=seconds if scores.reads_prompt_alone else None,
    )
    return found


def _bleu(pair: Pair, score: FloatArray, tokenizer: str) -> tuple[FloatArray, FloatArray]:
    references = pair.large.references()
    small, large = (
        ngram_counts(model.strings("text"), references, tokenizer)
        for model in (pair.small, pair.large)
    )
    return bleu_curve(score, small, large, tokenizer)


def warnings(results: Sequence[CascadeResult]) -> list[str]:
    """What a reader must know before trusting the figures."""
    return [
        *_empty_answers(results),
        *_unknown_sizes(results),
        *_swapped(results),
        *_small_leads(results),
    ]


def _empty_answers(results: Sequence[CascadeResult]) -> Iterator[str]:
    models = [(result.label, result.pair.small) for result in results]
    models.append((f"the large model {results[0].pair.large.model_name}", results[0].pair.large))
    for name, answers in models:
        count = answers.num_empty()
        if count:
            yield (
                f"{count:,} of {len(answers):,} answers of {strip_control(name)} are empty; check "
                "its stop texts, chat template and end-of-sequence token."
            )
        for reason, words in (("content_filter", "refused"), ("length", "cut at the limit")):
            count = answers.num_finished_by(reason)
            if count:
                yield (
                    f"{count:,} of {len(answers):,} answers of {strip_control(name)} were {words}"
                    f" (finish_reason {reason})."
                )


def _unknown_sizes(results: Sequence[CascadeResult]) -> Iterator[str]:
    """Served models whose files name no parameters: their computation is not known."""
    models = [model for result in results for model in (result.pair.small, result.pair.large)]
    names = dict.fromkeys(model.model_name for model in models if model.num_parameters is None)
    if names:
        yield (
            f"The number of parameters of {', '.join(map(strip_control, names))} is not known: "
            "figures in FLOPs are left out. Pass --prices to see cost in money."
        )


def _swapped(results: Sequence[CascadeResult]) -> Iterator[str]:
    """Small models that cost more than the large one: perhaps the two flags were swapped."""
    for result in results:
        small, large = result.pair.small, result.pair.large
        for what, ours, theirs in (
            ("active parameters", small.num_active_parameters, large.num_active_parameters),
            ("parameters", small.num_parameters, large.num_parameters),
        ):
            if ours is not None and theirs is not None and ours > theirs:
                yield (
                    f"--small {result.label} has {ours:,} {what}, --large "
                    f"{strip_control(large.model_name)} has {theirs:,}: were the two swapped? If "
                    f"so, pass --small {large.source} --large {small.source}."
                )
                break


def _small_leads(results: Sequence[CascadeResult]) -> list[str]:
    return [
        f"The large model's lead over {result.label} is {100 * result.curve.gap:.1f} points, less "
        f"than {100 * MIN_GAP:.0f}: a cascade has little to gain, and figures relative to the lead "
        "are left out."
        for result in results
        if result.curve.gap < MIN_GAP
    ]
