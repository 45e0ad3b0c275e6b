"""Everything that `caskd eval` finds out, before any of it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caskd.eval.config import EvalConfig
from caskd.eval.curves import Price, read_prices
from caskd.eval.rules import Scored, score_pairs
from caskd.eval.study.chain import ChainMeasured, measure_chain
from caskd.eval.study.compare import Comparisons, compare
from caskd.eval.study.experiment import Experiment, read_experiment
from caskd.eval.study.measure import Measured, measure, warnings
from caskd.eval.study.operating_point import OperatingPoint, choose, parse_wish
from caskd.eval.study.samples import default_threshold, sample_rows
from caskd.eval.study.threshold_drift import transfer_rows
from caskd.store.errors import UsageError
from caskd.store.io import strip_control


@dataclass(frozen=True)
class Findings:
    """The numbers of one report."""

    measured: list[Measured]
    comparisons: Comparisons
    split: Mapping[str, object]
    left_out: list[str]
    transfer: list[dict[str, Any]]
    """Empty where no calibration split was given."""
    chain: ChainMeasured | None
    point: OperatingPoint | None
    samples: list[dict[str, Any]]
    samples_of: str
    """Which small model, rule and threshold the samples belong to, in words."""
    priced: bool

    @property
    def main_rule(self) -> str:
        """The rule of the main figures."""
        return next(iter(self.measured[0].rules))

    @property
    def warnings(self) -> list[str]:
        """What a reader must know first."""
        found = [*warnings(self.measured), *self.comparisons.warnings]
        if self.point is not None and self.point.chosen_on == "test":
            found.append(
                "The operating point was chosen on the examples that it is measured on: as the "
                "best of many it looks better than it is. Give --calibration 0.5 to choose it "
                "on other examples."
            )
        if self.point is not None and not self.point.met:
            found.append(
                f"On the test examples the operating point misses {self.point.wish}: it was met "
                "on the calibration split only. Ask for a little more."
            )
        return found


def find(config: EvalConfig) -> Findings:
    """Measure everything that the command asks for.

    Raises:
        UsageError: a file is missing or no predictions file, a flag is wrong, or nothing meets the
            operating point.
        IdentityError: predictions that do not belong together.
    """
    wish = parse_wish(config.operating_point) if config.operating_point else None
    prices = read_prices(config.prices) if config.prices else None
    _check_chain(config)
    experiment = read_experiment(config, config.small or config.chain)
    scored, left_out = score_pairs(experiment.tests, experiment.fits, config.rule)
    measured = [
        measure(run.label, run.arm, pair, scores, prices=prices, bleu=config.bleu)
        for run, pair, scores in zip(experiment.runs, experiment.tests, scored, strict=True)
    ]
    calibrations = experiment.calibrations
    point = choose(wish, measured, calibrations, prices) if wish else None
    one, rule, threshold = (
        (point.measured, point.scored, point.threshold)
        if point
        else (measured[0], measured[0].main.scored, default_threshold(measured[0]))
    )
    return Findings(
        measured=measured,
        comparisons=compare(measured, config.target_quality),
        split=experiment.split,
        left_out=[strip_control(line) for line in left_out],
        transfer=list(transfer_rows(measured, calibrations)) if calibrations else [],
        chain=_chain(config, experiment, scored, prices) if config.chain else None,
        point=point,
        samples=sample_rows(one, rule, threshold),
        samples_of=f"{one.label}, rule {rule.rule}, threshold {threshold:.6g}",
        priced=prices is not None,
    )


def _check_chain(config: EvalConfig) -> None:
    if config.chain and len(config.chain) < 2:
        raise UsageError(
            "got one --chain, expected two or more besides --large; for one type --small"
        )
    if config.chain and config.small and config.calibration_small:
        raise UsageError(
            "--calibration-small speaks of --small alone; with --chain give --calibration 0.2, "
            "or leave --small out"
        )


def _chain(
    config: EvalConfig,
    experiment: Experiment,
    scored: Sequence[Mapping[str, Scored]],
    prices: Mapping[str, Price] | None,
) -> ChainMeasured:
    """The chain's models are those of `--small` unless both flags are given."""
    rule = next(iter(scored[0]))
    if config.small:
        experiment = read_experiment(config, config.chain)
        scored, _ = score_pairs(experiment.tests, experiment.fits, [rule])
    return measure_chain(
        experiment.tests, experiment.calibrations, [one[rule] for one in scored], prices
    )
