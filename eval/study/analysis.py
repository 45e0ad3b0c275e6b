"""Everything that `caskd eval` computes, before it writes any of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from caskd.eval.answers import is_bounded
from caskd.eval.config import EvalConfig
from caskd.eval.curves import Price, read_prices
from caskd.eval.outcomes import OutcomeTable
from caskd.eval.rules import RuleScores, score_pairs
from caskd.eval.study.chain import ChainResult, measure_chain
from caskd.eval.study.compare import Comparisons, compare
from caskd.eval.study.decision import CostLine, Decision, cost_lines, decide
from caskd.eval.study.experiment import Experiment, read_experiment
from caskd.eval.study.guarantee import Guarantee, drift_rows, guarantee, parse_promise
from caskd.eval.study.measure import CascadeResult, measure_cascade, warnings
from caskd.eval.study.operating_point import (
    OperatingPoint,
    check_quality_bounds,
    choose,
    parse_constraint,
)
from caskd.eval.study.samples import default_threshold, sample_rows
from caskd.eval.study.table_figures import Domination, benchmark_rows, dominations
from caskd.eval.study.token_cascades import TokenCascadePoint, read_token_cascades
from caskd.store.errors import UsageError
from caskd.store.io import strip_control


@dataclass(frozen=True)
class Analysis:
    """The numbers of one report."""

    results: list[CascadeResult]
    """One for each small model."""
    comparisons: Comparisons
    split: Mapping[str, object]
    """How the examples were split, and how many each part has."""
    left_out: list[str]
    """A line for each rule that was left out, with the reason."""
    threshold_drift: list[dict[str, Any]]
    """Empty without a calibration split."""
    chain: ChainResult | None
    point: OperatingPoint | None
    decision: Decision
    cost_lines: list[CostLine]
    """The main rule of each small model, threshold by threshold."""
    samples: list[dict[str, Any]]
    """Examples on both sides of the threshold."""
    samples_of: str
    """Small model, rule and threshold of the samples, in words."""
    token_cascades: list[TokenCascadePoint]
    priced: bool
    """Whether there is a price list."""
    guarantee: Guarantee | None = None
    """The thresholds of `--guarantee`."""
    outcomes: OutcomeTable | None = None
    """The table in place of predictions files."""

    @property
    def main_rule(self) -> str:
        """The rule of the main figures."""
        return next(iter(self.results[0].rules))

    @property
    def num_questions(self) -> int:
        """Different questions among the test examples."""
        return self.results[0].pair.num_questions

    @property
    def resampled(self) -> str:
        """What intervals and tests resample, in one word."""
        return "examples" if self.num_questions == len(self.results[0].pair) else "questions"

    @cached_property
    def dominations(self) -> list[Domination]:
        """Models of a table that are better and no dearer than others, also in the chain."""
        groups = [[result.pair for result in self.results]]
        if self.chain is not None:
            groups.append(self.chain.pairs)
        found = (one for pairs in groups for one in dominations(pairs))
        return list({(one.better, one.worse): one for one in found}.values())

    @cached_property
    def benchmarks(self) -> list[dict[str, Any]]:
        """Figures of router benchmarks, of an outcome table with costs."""
        return benchmark_rows(self.results)

    @property
    def warnings(self) -> list[str]:
        """What a reader must know first."""
        found = [*warnings(self.results), *self.comparisons.warnings]
        if self.outcomes is not None:
            beaten = (one.sentence for one in self.dominations)
            found = [*beaten, *self.outcomes.warnings(), *found]
        if self.point is not None and self.point.chosen_on == "test":
            found.append(
                "The operating point was chosen on the examples that measure it, so its figures "
                "are optimistic. Pass --calibration 0.5 to choose it on other examples."
            )
        if self.point is not None and not self.point.met:
            found.append(
                f"On the test examples the operating point misses {self.point.constraint}: it held "
                "on the calibration split only. Set a slightly stricter bound."
            )
        return found


def analyze(config: EvalConfig) -> Analysis:
    """Measure everything that the flags ask for.

    Raises:
        UsageError: a file is missing or not a predictions file, a flag is wrong, or no cascade
            meets the operating point.
        IdentityError: predictions that do not belong together.
    """
    constraint = parse_constraint(config.operating_point) if config.operating_point else None
    promise = parse_promise(config.guarantee) if config.guarantee else None
    prices = read_prices(config.prices) if config.prices else None
    _check_chain(config)
    experiment = read_experiment(config, config.small or config.chain)
    calibrations = experiment.calibrations
    bounded = is_bounded(experiment.tests[0].large.metadata)
    check_quality_bounds(config.target_quality, constraint, bounded=bounded)
    scores, left_out = score_pairs(experiment.tests, experiment.fits, experiment.rules)
    results = [
        measure_cascade(
            run.label,
            run.arm,
            pair,
            by_rule,
            calibration=calibrations[index] if calibrations else None,
            prices=prices,
            bleu=config.bleu,
        )
        for index, (run, pair, by_rule) in enumerate(
            zip(experiment.runs, experiment.tests, scores, strict=True)
        )
    ]
    point = choose(constraint, results, calibrations, prices) if constraint else None
    lines = cost_lines(results, prices)
    shown, rule, threshold = (
        (point.result, point.scores, point.threshold)
        if point
        else (results[0], results[0].main.scores, default_threshold(results[0]))
    )
    return Analysis(
        results=results,
        comparisons=compare(results, config.target_quality),
        split=experiment.split,
        left_out=[strip_control(line) for line in left_out],
        threshold_drift=list(drift_rows(results, calibrations)) if calibrations else [],
        chain=_chain(config, experiment, scores, prices) if config.chain else None,
        point=point,
        decision=decide(results, lines, calibrations, prices, point),
        cost_lines=lines,
        samples=sample_rows(shown, rule, threshold),
        samples_of=f"{shown.label}, rule {rule.rule}, threshold {threshold:.6g}",
        token_cascades=read_token_cascades(
            config.token_cascade,
            experiment.tests[0].large,
            config.task_metric,
            is_split=config.calibration is not None,
        ),
        priced=prices is not None,
        guarantee=guarantee(promise, results, calibrations, prices, bounded=bounded)
        if promise
        else None,
        outcomes=experiment.outcomes,
    )


def _check_chain(config: EvalConfig) -> None:
    if config.chain and len(config.chain) < 2:
        raise UsageError(
            "--chain: was given once; expected two or more besides --large; for one small model "
            "pass --small FILE instead"
        )
    if config.chain and config.small and config.calibration_small:
        raise UsageError(
            "--calibration-small: was given with --chain; expected it only with --small; pass "
            "--calibration 0.2 instead, or omit --chain"
        )


def _chain(
    config: EvalConfig,
    experiment: Experiment,
    scores: Sequence[Mapping[str, RuleScores]],
    prices: Mapping[str, Price] | None,
) -> ChainResult:
    """Measure the chain; without `--small` its models are already open and scored."""
    rule = next(iter(scores[0]))
    if config.small:
        experiment = read_experiment(config, config.chain)
        scores, _ = score_pairs(experiment.tests, experiment.fits, [rule])
    return measure_chain(
        experiment.tests, experiment.calibrations, [by_rule[rule] for by_rule in scores], prices
    )
