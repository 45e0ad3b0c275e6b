"""Fitted deferral rules: small networks on stored columns of each answer or prompt.

A router is fitted on the calibration split alone. It holds plain numbers, so JSON can store it and
numpy can apply it.

Legend: E examples, F features.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import Ragged, Units
from caskd.store.errors import UsageError
from caskd.store.imports import require

FloatArray = npt.NDArray[np.float64]

MAX_TOKENS = 2048
"""Token probabilities that EdgeInference reads; longer answers are cut (as in CAT)."""
LEAST = -1000.0
"""Stands for a log-probability of -inf, which no network can read."""
NUM_HASHED = 512
SURE = 0.9
"""P(T) from which on P(IK) decides (arXiv 2602.22090)."""
MIN_EXAMPLES, MIN_RARER = 20, 5
MAX_EPOCHS, PATIENCE, LEAST_GAIN = 500, 10, 1e-4
"""Training ends when the accuracy on held-out questions has not grown for PATIENCE epochs."""
HELD_OUT = 0.2
_SHARES = tuple(np.linspace(0.0, 1.0, 11))
_TILE = 8192


class Stored(Protocol):
    """Source of features: stored predictions, or fresh answers of a served model."""

    def has(self, name: str) -> bool:
        """Whether the column has values."""

    def lists(self, name: str) -> Ragged:
        """A list column."""

    def texts(self, name: str) -> list[str]:
        """A text column."""


@dataclass(frozen=True)
class RouterKind:
    """One way to fit a router."""

    name: str
    column: str
    """The stored column that it reads; gated rules also read `token_logprobs`."""
    hidden_sizes: tuple[int, ...]
    """Hidden layers of the network; empty is a logistic regression."""
    own_quality: bool = False
    """Predicts whether the small model is right, not whether the large one is better."""
    before_generation: bool = False
    """Decides before the small model answers; a deferred example then costs no small answer."""
    gated: bool = False
    """Defers answers whose first token is less probable than `SURE` before all others."""
    quantiles: bool = False
    """Reads quantiles of the column, not one probability per token."""

    @property
    def has_confidence(self) -> bool:
        """Whether 1 - score is the probability that the small model is right."""
        return self.own_quality and not self.gated


_LOGPROBS = "token_logprobs"
ROUTERS: Mapping[str, RouterKind] = {
    kind.name: kind
    for kind in (
        RouterKind("edge-inference", _LOGPROBS, (32,)),
        RouterKind("post-hoc-mlp", _LOGPROBS, (32, 32), quantiles=True),
        RouterKind("p-ik", "hidden", (64,), own_quality=True),
        RouterKind("p-ik-and-p-t", "hidden", (64,), own_quality=True, gated=True),
        RouterKind("hidden-router", "hidden", (64,), before_generation=True),
        RouterKind("prompt-router", "prompt", (), before_generation=True),
    )
}


@dataclass(frozen=True)
class Router:
    """A fitted router; its score is the probability that deferring is right."""

    kind: RouterKind
    mean: FloatArray
    """[F] subtracted from the features."""
    scale: FloatArray
    """[F] divides the features after that."""
    layers: tuple[tuple[FloatArray, FloatArray], ...]
    """Weights and biases; ReLU between layers, a logistic function after the last."""

    def score(self, stored: Stored) -> FloatArray:
        """Deferral score [E]; the highest are deferred first.

        Raises:
            UsageError: a column is missing, or its width differs from the one at fitting.
        """
        make = features(self.kind, stored, self.mean.size)
        tiles = [
            self._forward(make(slice(start, start + _TILE)))
            for start in range(0, make.count, _TILE)
        ]
        score = np.concatenate(tiles)
        if self.kind.gated:
            unsure = np.exp(stored.lists(_LOGPROBS).first()) < SURE
            score = score + unsure
        return score

    def _forward(self, inputs: FloatArray) -> FloatArray:
        if inputs.shape[1] != self.mean.size:
            raise UsageError(
                f"{self.kind.column}: width is {inputs.shape[1]}; expected {self.mean.size}, on "
                f"which {self.kind.name} was fitted; use predictions of the same model"
            )
        values = (inputs - self.mean) / self.scale
        for number, (weights, biases) in enumerate(self.layers):
            values = (np.maximum(values, 0.0) if number else values) @ weights + biases
        chance = 0.5 * (1.0 + np.tanh(0.5 * values[:, 0]))
        return np.asarray(1.0 - chance if self.kind.own_quality else chance)

    def to_json(self) -> dict[str, Any]:
        """The router as numbers and lists."""
        return {
            "kind": self.kind.name,
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "layers": [[weights.tolist(), biases.tolist()] for weights, biases in self.layers],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Router":
        """The inverse of `to_json`."""
        layers = tuple(
            (np.array(weights), np.array(biases)) for weights, biases in fields["layers"]
        )
        kind = ROUTERS[fields["kind"]]
        return cls(kind, np.array(fields["mean"]), np.array(fields["scale"]), layers)


def fit_router(
    kind: RouterKind,
    stored: Stored,
    small_quality: FloatArray,
    large_quality: FloatArray,
    *,
    units: Units = None,
    seed: int = 0,
) -> Router:
    """Fit a router on calibration examples.

    The label is whether the large model's answer is better; for P(IK) it is whether the small
    model's quality is at least one half.

    Args:
        kind: kind of the router.
        stored: predictions of the calibration examples.
        small_quality: [E]
        large_quality: [E]
        units: question of each example; the examples that stop the training share no question
            with those that it reads.
        seed: of the first weights, the order of examples and the held-out questions.

    Raises:
        UsageError: scikit-learn is not installed, or there are too few questions of either label.
    """
    label = small_quality >= 0.5 if kind.own_quality else large_quality > small_quality
    questions = np.arange(label.size) if units is None else units
    count = np.unique(questions).size
    rarer = min(np.unique(questions[label == side]).size for side in (True, False))
    if count < MIN_EXAMPLES or rarer < MIN_RARER:
        raise UsageError(
            f"{kind.name}: got {count:,} calibration questions, {rarer:,} of them with the "
            f"rarer label; expected at least {MIN_EXAMPLES} and {MIN_RARER}; use more examples or "
            "a larger --calibration"
        )
    make = features(kind, stored, None)
    inputs = make(slice(None))
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale[scale == 0.0] = 1.0
    layers = _fit(kind, (inputs - mean) / scale, label, _held_out(questions, seed), seed)
    return Router(kind, mean, scale, layers)


def _held_out(questions: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.bool_]:
    """Mark the examples [E] of a fifth of the questions."""
    names = np.random.default_rng(seed).permutation(np.unique(questions))
    return np.isin(questions, names[: round(HELD_OUT * names.size)])


def _fit(
    kind: RouterKind,
    inputs: FloatArray,
    label: npt.NDArray[np.bool_],
    held: npt.NDArray[np.bool_],
    seed: int,
) -> tuple[tuple[FloatArray, FloatArray], ...]:
    needed_by = f"--rule {kind.name}"
    linear_model = require("sklearn.linear_model", extra="routers", needed_by=needed_by)
    neural_network = require("sklearn.neural_network", extra="routers", needed_by=needed_by)
    if not kind.hidden_sizes:
        linear = linear_model.LogisticRegression(C=0.1, max_iter=1000, random_state=seed)
        linear.fit(inputs, label)
        return ((linear.coef_.T, linear.intercept_),)
    network = neural_network.MLPClassifier(
        kind.hidden_sizes,
        alpha=1e-2,
        learning_rate_init=3e-3,
        batch_size=min(max(32, len(label) // 100), int((~held).sum())),
        random_state=np.random.RandomState(seed),  # a number would repeat one order of examples
    )
    best, waited = -1.0, 0
    layers: list[tuple[FloatArray, FloatArray]] = []
    for _ in range(MAX_EPOCHS):
        network.partial_fit(inputs[~held], label[~held], classes=(False, True))
        accuracy = float(network.score(inputs[held], label[held]))
        waited = 0 if accuracy > best + LEAST_GAIN else waited + 1
        if accuracy > best:
            best = accuracy
            both = zip(network.coefs_, network.intercepts_, strict=True)
            layers = [(weights.copy(), biases.copy()) for weights, biases in both]
        if waited > PATIENCE:
            break
    return tuple(layers)


class Features:
    """Computes features of a range of examples, so that memory never holds all of them."""

    def __init__(self, count: int, make: Callable[[slice], FloatArray]) -> None:
        self.count = count
        self._make = make

    def __call__(self, where: slice) -> FloatArray:
        """Features [., F]."""
        return self._make(where)


def features(kind: RouterKind, stored: Stored, width: int | None) -> Features:
    """The features that a router of this kind reads.

    Args:
        kind: kind of the router.
        stored: predictions or answers.
        width: F at fitting; None while fitting.

    Raises:
        UsageError: a column is missing.
    """
    if kind.column == "prompt":
        prompts = stored.texts("prompt")
        return Features(len(prompts), lambda where: hashed_ngrams(prompts[where]))
    rows = stored.lists(kind.column)
    rows = Ragged(np.where(np.isneginf(rows.values), LEAST, rows.values), rows.offsets)
    if kind.column == "hidden":
        return Features(len(rows), lambda where: rows.part(where).padded(rows.width()))
    if kind.quantiles:
        return Features(len(rows), lambda where: _quantile_features(rows.part(where)))
    length = width or min(MAX_TOKENS, rows.width())

    def probabilities(where: slice) -> FloatArray:
        part = rows.part(where)
        return Ragged(np.exp(part.values), part.offsets).padded(length)

    return Features(len(rows), probabilities)


def _quantile_features(rows: Ragged) -> FloatArray:
    extra = np.stack([rows.mean(), rows.sum(), np.log(rows.lengths)], axis=1)
    return np.concatenate((rows.quantiles(_SHARES), extra), axis=1)


def hashed_ngrams(prompts: list[str]) -> FloatArray:
    """Hashed counts [E, NUM_HASHED] of each prompt's words and word pairs, with norm 1."""
    table = np.zeros((len(prompts), NUM_HASHED))
    for row, prompt in enumerate(prompts):
        words = prompt.lower().split()
        grams = [*words, *(" ".join(pair) for pair in pairwise(words))]
        for gram in grams:
            table[row, zlib.crc32(gram.encode()) % NUM_HASHED] += 1.0
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(norms == 0.0, 1.0, norms)
