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
    answer_cost,
    aurc,
    auroc,
    bleu_curve,
    calibration_error,
    curve_figures,
    deferral_curve,
    flops,
    isotonic_confidence,
    money,
    ngram_counts,
    price_of,
    shares,
    tail_seconds,
    token_cost,
)
from caskd.eval.outcomes import CALLS
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
    main_cost: FloatArray
    """[P] mean cost: FLOPs per token (NaN if a model's parameters are not known), or per example
    the cost that an outcome table states."""


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
    """[P] mean cost per example at each point: flops, seconds, and with prices money; of an
    outcome table cost and seconds, where it has them."""
    tail: tuple[FloatArray, FloatArray] | None
    """Deferral rates, and the 95th percentile of the seconds per example at each; None without
    seconds."""
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
    def main_cost(self) -> FloatArray:
        """[P] main cost of the first rule."""
        return self.main.main_cost

    @property
    def oracle_cost(self) -> FloatArray:
        """[O] main cost of the oracle at its deferral rates."""
        lead = self.pair.large_quality - self.pair.small_quality
        points = thin(np.unique(lead).size + 1, MAX_POINTS)
        return cost_along(self.pair, lead, self.curve.oracle_rate, points)

    @property
    def has_cost(self) -> bool:
        """Whether the main cost of both models is known."""
        return self.pair.has_cost


def measure_cascade(
    label: str,
    arm: str,
    pair: Pair,
    scores: Mapping[str, RuleScores],
    *,
    calibration: Pair | None = None,
    prices: Mapping[str, Price] | None = None,
    bleu: str | None = None,
) -> CascadeResult:
    """Curves and costs of one cascade.

    Args:
        label: name of this small model in the report.
        arm: the arm of which it is one seed.
        pair: answers of both models.
        scores: scores by rule, the main rule first.
        calibration: answers to the calibration examples, which calibrate every score.
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
        rules={name: _rule_result(pair, own, calibration) for name, own in scores.items()},
        tasks={
            name: deferral_curve(
                first.score[part], pair.small_quality[part], pair.large_quality[part]
            )
            for name, part in parts.items()
        },
        costs={unit: cost.mean(first.score)[points] for unit, cost in costs.items()},
        tail=tail_seconds(first.score, costs["seconds"]) if "seconds" in costs else None,
        bleu=_bleu(pair, first.score, bleu) if bleu else None,
    )


def _rule_result(pair: Pair, scores: RuleScores, calibration: Pair | None) -> RuleResult:
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
        "ece_isotonic": None if calibration is None else _isotonic_error(pair, scores, calibration),
    }
    return RuleResult(
        scores=scores,
        curve=thinned,
        figures={**curve_figures(curve), **rest},
        main_cost=cost_along(
            pair, scores.score, thinned.deferral_rate, points, saves=scores.before_generation
        ),
    )


def _isotonic_error(pair: Pair, scores: RuleScores, calibration: Pair) -> float | None:
    """Calibration error of a score after isotonic regression on the calibration examples."""
    quality = calibration.small_quality
    if quality.min() < 0.0 or quality.max() > 1.0:
        return None
    confidence = isotonic_confidence(scores.apply(calibration), quality, scores.score)
    return calibration_error(confidence, pair.small_quality)


def cost_along(
    pair: Pair,
    score: FloatArray,
    rate: FloatArray,
    points: npt.NDArray[np.int64],
    *,
    saves: bool = False,
) -> FloatArray:
    """Mean main cost [P] along a curve.

    Args:
        pair: answers of both models.
        score: [E] deferral score.
        rate: [P] deferral rates.
        points: [P] the points of the whole curve that these rates are.
        saves: whether deferring an example saves the small model's answer to it.
    """
    if pair.small.is_outcomes:
        return main_shares(pair, saves=saves).mean(score)[points]
    sizes = (model.num_active_parameters for model in (pair.small, pair.large))
    return token_cost(rate, *sizes, before_generation=saves)


def main_shares(pair: Pair, *, saves: bool) -> Shares:
    """Main cost of each example, by the case that incurs it."""
    small, large = answer_cost(pair.small), answer_cost(pair.large)
    return shares(small, large, saved=small if saves else None)


def cost_shares(
    pair: Pair, scores: RuleScores, prices: Mapping[str, Price] | None
) -> dict[str, Shares]:
    """Cost of each example in flops, seconds and, with a price list, money; or as a table states.

    A rule on the small model's hidden state pays for reading the prompt. Its seconds count in full,
    because predictions files do not separate reading from writing.

    Raises:
        UsageError: a model has no price.
    """
    if pair.small.is_outcomes:
        return _stated_costs(pair)
    units = {"flops": (flops(pair.small), flops(pair.large))} if pair.has_cost else {}
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


def _stated_costs(pair: Pair) -> dict[str, Shares]:
    """Costs of an outcome table: those that it has for both models."""
    found = {}
    if pair.small.cost_unit != CALLS:
        found["cost"] = main_shares(pair, saves=False)
    if all("seconds" in model.columns.column_names for model in (pair.small, pair.large)):
        found["seconds"] = shares(pair.small.numbers("seconds"), pair.large.numbers("seconds"))
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
    names = dict.fromkeys(model.model_name for model in models if not model.has_cost)
    if names:
        yield (
            f"The number of parameters of {', '.join(map(strip_control, names))} is not known: "
            "figures in FLOPs are left out. Pass --prices to see cost in money."
        )


def _swapped(results: Sequence[CascadeResult]) -> Iterator[str]:
    """Small models that cost more than the large one: perhaps the two flags were swapped."""
    for result in results:
        small, large = result.pair.small, result.pair.large
        if small.is_outcomes:
            continue
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
