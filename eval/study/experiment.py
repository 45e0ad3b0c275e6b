"""Open predictions files, join small and large models, and split off calibration examples."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from caskd.eval.curves import read_prices
from caskd.eval.inference import read_questions, with_questions
from caskd.eval.outcomes import CALLS, OutcomeTable, read_table
from caskd.eval.rules import ROUTERS, Pair
from caskd.eval.study.flags import check_flags
from caskd.eval.study.rescoring import rescore
from caskd.store.corpus import Columns
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import strip_control, value_text


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
    rules: Sequence[str]
    """Rules that were asked for, or that of the outcome table; empty for all."""
    outcomes: OutcomeTable | None = None
    """The table in place of predictions files."""


def read_experiment(config: EvalConfig, small: Sequence[str]) -> Experiment:
    """Open and join every predictions file, or the outcome tables, and split the examples.

    Args:
        config: flags of the command.
        small: the files of the small models, FILE or NAME=FILE; with outcome tables model names.

    Raises:
        UsageError: a file is missing or of another kind, or flags contradict each other.
        IdentityError: predictions that do not belong together.
    """
    check_flags(config, small)
    whole = _read_outcomes(config, small) if config.outcomes else _read_files(config, small)
    if whole.calibrations is not None:
        return _halved(config, whole)
    if config.calibration is None:
        count = len(whole.tests[0])
        split = {"by": "none", "num_test": count, "num_calibration": 0, "num_fit": 0}
        return replace(whole, split=split)
    large = whole.tests[0].large
    marked = calibration_mask(_names(large), config.calibration, config.calibration_seed)
    return _halved(
        config,
        replace(
            whole,
            tests=[pair.take(np.flatnonzero(~marked)) for pair in whole.tests],
            calibrations=[pair.take(np.flatnonzero(marked)) for pair in whole.tests],
            split={
                "by": "hash of the question",
                "share": config.calibration,
                "seed": config.calibration_seed,
            },
        ),
    )


def _read_outcomes(config: EvalConfig, small: Sequence[str]) -> Experiment:
    """The asked models of outcome tables, joined on the examples that all of them answered."""
    prices = read_prices(config.prices) if config.prices else None
    table = read_table(config.outcomes, small, config.large, prices)
    if config.chain and table.cost_unit == CALLS:
        raise UsageError(
            "--chain: the table has no column cost; expected the cost of each answer; add it, or "
            "pass --prices for a table with prompt_tokens and output_tokens"
        )
    runs = [
        Run(label, label, table.models[name])
        for name, label in ((name, strip_control(name)) for name in small)
    ]
    large = table.models[config.large]
    pairs = [Pair(run.predictions, large) for run in runs]
    return Experiment(runs, pairs, None, None, {}, (table.rule,), table)


def _read_files(config: EvalConfig, small: Sequence[str]) -> Experiment:
    runs = [
        replace(run, predictions=_prepared(run.predictions, "--small", config))
        for run in read_runs(small)
    ]
    large = _prepared(read_predictions(config.large), "--large", config)
    questions = _questions(config)
    pairs = [_join(run.predictions, large, questions) for run in runs]
    if config.calibration_large is None:
        return Experiment(runs, pairs, None, None, {}, config.rule)
    other = _prepared(read_predictions(config.calibration_large), "--calibration-large", config)
    check_same_model(large, other, "--large", "--calibration-large")
    calibrations = []
    for run, value in zip(runs, config.calibration_small, strict=True):
        ours = _prepared(read_predictions(split_name(value)[1]), "--calibration-small", config)
        check_same_model(run.predictions, ours, "--small", "--calibration-small")
        calibrations.append(_join(ours, other, questions))
    _check_apart(pairs[0], calibrations[0])
    return Experiment(runs, pairs, calibrations, None, {"by": "files"}, config.rule)


def _prepared(predictions: Predictions, flag: str, config: EvalConfig) -> Predictions:
    predictions.check_one_model(flag)
    return rescore(predictions, config.task_metric)


def _questions(config: EvalConfig) -> dict[str, str] | None:
    """Text of each question by its digest, with `--data`."""
    if not config.data:
        return None
    return read_questions(
        config.data, Columns(prompt=config.prompt_column, messages=config.messages_column)
    )


def _join(ours: Predictions, theirs: Predictions, questions: dict[str, str] | None) -> Pair:
    return Pair(with_questions(ours, questions) if questions is not None else ours, theirs)


def _halved(config: EvalConfig, whole: Experiment) -> Experiment:
    """Half of the calibration examples fit rules, if any rule needs fitting."""
    assert whole.calibrations is not None, "called only where there are some"
    fits, calibrations = None, whole.calibrations
    if not whole.rules or set(whole.rules) & ROUTERS.keys():
        names = _names(calibrations[0].large)
        marked = calibration_mask(names, 0.5, config.calibration_seed + 1)
        fits = [pair.take(np.flatnonzero(marked)) for pair in calibrations]
        calibrations = [pair.take(np.flatnonzero(~marked)) for pair in calibrations]
    counts = {
        "num_test": len(whole.tests[0]),
        "num_calibration": len(calibrations[0]),
        "num_fit": len(fits[0]) if fits else 0,
    }
    split = {**whole.split, **counts}
    return replace(whole, calibrations=calibrations, fits=fits, split=split)


def _names(predictions: Predictions) -> list[str]:
    return question_names(predictions.strings("question_digest"), predictions.strings("example_id"))


def _check_apart(test: Pair, calibration: Pair) -> None:
    known = [set(pair.large.strings("question_digest")) for pair in (test, calibration)]
    shared = (known[0] & known[1]) - {""}
    if shared:
        raise UsageError(
            f"--large and --calibration-large: {len(shared):,} questions are in both; expected "
            "none; use other questions, or split one set with --calibration 0.2"
        )


def check_same_model(test: Predictions, other: Predictions, *flags: str) -> None:
    """Refuse calibration answers of another model, or decoded in another way.

    Args:
        test: answers on the test examples.
        other: answers on the calibration examples.
        flags: the options that named both.

    Raises:
        IdentityError: names the first field that differs, and both values.
    """
    ours, theirs = (_measured_with(one.metadata) for one in (test, other))
    for field in (name for name in ours if name in theirs):
        if ours[field] != theirs[field] and None not in (ours[field], theirs[field]):
            raise IdentityError(
                f"{flags[1]} {other.source}: {field} is {value_text(theirs[field])}; expected "
                f"{value_text(ours[field])}, that of {flags[0]} {test.source}, whose thresholds it "
                "chooses; pass answers of the same model in the same order, decoded with the same "
                "flags"
            )


_MODEL = ("weights_digest", "config_digest", "revision", "tokenizer_digest", "template_digest",
          "dtype", "answers_as", "num_parameters")  # fmt: skip
_DECODING = ("strategy", "max_new_tokens", "stop_ids", "hidden_layer", "api", "neutral_settings")


def _measured_with(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What answers depend on besides their questions: fields by their names."""
    cascade = metadata.get("token_cascade", {})
    parts = {"model": metadata["model"], **{f"token_cascade.{role}": cascade.get(role, {})
                                            for role in ("small", "large")}}  # fmt: skip
    found = {f"{part}.{f}": model.get(f) for part, model in parts.items() for f in _MODEL}
    if found["model.weights_digest"] is None and not cascade:
        found["model.name"] = metadata["model"].get("name")
    decoding = metadata.get("decoding", {})
    found |= {f"decoding.{field}": decoding.get(field) for field in _DECODING}
    found |= {f"text.{field}": value for field, value in metadata.get("text", {}).items()}
    found |= {
        f"token_cascade.{field}": value
        for field, value in cascade.items()
        if field not in ("small", "large", "calibration")
    }
    for task, described in metadata.get("tasks", {}).items():
        found |= {f"tasks.{task}.{field}": value for field, value in described.items()}
    return found


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
