"""Open predictions files, join small and large models, and split off calibration examples."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import (
    Predictions,
    Run,
    question_names,
    read_predictions,
    read_runs,
    split_name,
)
from caskd.eval.config import EvalConfig
from caskd.eval.inference import read_questions, with_questions
from caskd.eval.rules import ROUTERS, Pair
from caskd.eval.study.rescoring import rescore
from caskd.store.corpus import Columns
from caskd.store.errors import UsageError


@dataclass(frozen=True)
class Experiment:
    """Every small model on test, calibration and fit examples."""

    runs: list[Run]
    tests: list[Pair]
    calibrations: list[Pair] | None
    """Examples that choose thresholds."""
    fits: list[Pair] | None
    """Examples that fit rules; separate, because a fitted rule is overconfident on its own data."""
    split: dict[str, object]
    """How the examples were split, for the summary."""


def read_experiment(config: EvalConfig, small: Sequence[str]) -> Experiment:
    """Open and join every predictions file.

    Args:
        config: flags of the command.
        small: the files of the small models, FILE or NAME=FILE.

    Raises:
        UsageError: a file is missing or not a predictions file, or flags contradict each other.
        IdentityError: predictions that do not belong together.
    """
    _check_flags(config, small)

    def read(file: str, flag: str) -> Predictions:
        return prepared(read_predictions(file), flag)

    def prepared(predictions: Predictions, flag: str) -> Predictions:
        predictions.check_one_model(flag)
        return rescore(predictions, config.task_metric)

    runs = [
        replace(run, predictions=prepared(run.predictions, "--small")) for run in read_runs(small)
    ]
    questions = None
    if config.data:
        columns = Columns(prompt=config.prompt_column, messages=config.messages_column)
        questions = read_questions(config.data, columns)

    def join(ours: Predictions, theirs: Predictions) -> Pair:
        return Pair(with_questions(ours, questions) if questions is not None else ours, theirs)

    large = read(config.large, "--large")
    pairs = [join(run.predictions, large) for run in runs]
    if config.calibration_large is not None:
        other = read(config.calibration_large, "--calibration-large")
        files = [split_name(value)[1] for value in config.calibration_small]
        calibrations = [join(read(file, "--calibration-small"), other) for file in files]
        _check_apart(pairs[0], calibrations[0])
        return _halved(config, Experiment(runs, pairs, calibrations, None, {"by": "files"}))
    if config.calibration is None:
        split = {"by": "none", "num_test": len(large), "num_calibration": 0, "num_fit": 0}
        return Experiment(runs, pairs, None, None, split)
    marked = calibration_mask(_names(large), config.calibration, config.calibration_seed)
    calibrations = [pair.take(np.flatnonzero(marked)) for pair in pairs]
    tests = [pair.take(np.flatnonzero(~marked)) for pair in pairs]
    split = {
        "by": "hash of the question",
        "share": config.calibration,
        "seed": config.calibration_seed,
    }
    return _halved(config, Experiment(runs, tests, calibrations, None, split))


def _halved(config: EvalConfig, whole: Experiment) -> Experiment:
    """Half of the calibration examples fit rules, if any rule needs fitting."""
    assert whole.calibrations is not None, "called only where there are some"
    fits, calibrations = None, whole.calibrations
    if not config.rule or set(config.rule) & ROUTERS.keys():
        names = _names(calibrations[0].large)
        marked = calibration_mask(names, 0.5, config.calibration_seed + 1)
        fits = [pair.take(np.flatnonzero(marked)) for pair in calibrations]
        calibrations = [pair.take(np.flatnonzero(~marked)) for pair in calibrations]
    counts = {
        "num_test": len(whole.tests[0]),
        "num_calibration": len(calibrations[0]),
        "num_fit": len(fits[0]) if fits else 0,
    }
    return Experiment(whole.runs, whole.tests, calibrations, fits, {**whole.split, **counts})


def _names(predictions: Predictions) -> list[str]:
    return question_names(predictions.strings("question_digest"), predictions.strings("example_id"))


def _check_flags(config: EvalConfig, small: Sequence[str]) -> None:
    if not small:
        raise UsageError(
            "--small: no small model; expected one or more; pass --small FILE, once for each"
        )
    if not config.large:
        raise UsageError("--large: no large model; expected one; pass --large FILE")
    if config.student or config.limit is not None:
        raise UsageError(
            "--student or --limit: was given without --next-token; expected both; "
            "pass --next-token STORE, or omit --student and --limit"
        )
    if config.accept_imported:
        raise UsageError(
            "--accept-imported: was given without --next-token; expected both; pass --next-token "
            "STORE, or omit --accept-imported"
        )
    if bool(config.calibration_small) != (config.calibration_large is not None):
        raise UsageError(
            "--calibration-small and --calibration-large: only one was given; expected both or "
            "neither; pass both"
        )
    if config.calibration_small and config.calibration is not None:
        raise UsageError(
            "--calibration and --calibration-small: both were given; expected one of them; omit "
            "the other"
        )
    if config.calibration_small and len(config.calibration_small) != len(small):
        raise UsageError(
            f"--calibration-small: got {len(config.calibration_small)} for {len(small)} small "
            "models; expected one each; pass them in the same order"
        )


def _check_apart(test: Pair, calibration: Pair) -> None:
    known = [set(pair.large.strings("question_digest")) for pair in (test, calibration)]
    shared = (known[0] & known[1]) - {""}
    if shared:
        raise UsageError(
            f"--large and --calibration-large: {len(shared):,} questions are in both; expected "
            "none; use other questions, or split one set with --calibration 0.2"
        )


def calibration_mask(names: Sequence[str], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mark the examples of the calibration split.

    The side of an example depends on its name and the seed alone, not on its position or on other
    examples, so the split is the same for every model and stays the same when data is added.

    Args:
        names: a name for each question; equal questions are on the same side.
        share: average share of calibration examples.
        seed: random seed of the split.

    Raises:
        UsageError: the share is not between 0 and 1, or one side is empty.
    """
    if not 0.0 < share < 1.0:
        raise UsageError(
            f"--calibration {share:g}: expected a fraction between 0 and 1; pass one such as 0.2"
        )
    limit = int(share * 2**64)
    marked = np.array([_hash(name, seed) < limit for name in names])
    if marked.all() or not marked.any():
        raise UsageError(
            f"--calibration {share:g}: leaves one side of {len(names):,} examples empty; expected "
            "examples on both sides; change the fraction or --calibration-seed, or use more "
            "examples"
        )
    return marked


def _hash(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:8], "big")
