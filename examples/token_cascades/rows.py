"""What a student and the large model of a store decide at each token, as arrays of one file.

    python rows.py STORE STUDENT OUT.npz [--router ROUTER]

Legend: N rows.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_PLACEBO_SEED = 20_260_101
ACCEPTABLE = 0.3
"""As in `caskd eval --next-token`."""


def scores(rows: Mapping[str, Array], arm: str = "") -> dict[str, Array]:
    """Scores [N] of every rule that the rows have, the highest first to the large model.

    Students of l2d and ova defer where the large model is more likely right than they are.
    """
    call = rows["call_log_odds"]
    if arm == "ova":
        call = -np.logaddexp(0.0, -call)
    if arm in ("l2d", "ova"):
        call = call - rows["best_logprob"]
    found = {
        "log-probability": -rows["best_logprob"],
        "margin": -rows["margin"],
        "entropy": rows["entropy"],
        "token-v3": -rows["choice_ratio"],
        "call": call,
        "router": rows["routed"],
        "random": np.random.default_rng(_PLACEBO_SEED).uniform(size=len(rows["right"])),
    }
    return {name: own for name, own in found.items() if not np.isnan(own).any()}


def acceptable(rows: Mapping[str, Array]) -> Array:
    """1.0 [N] where the student's token is the label, or nearly as likely as the teacher's."""
    return np.maximum(rows["right"], rows["choice_ratio"] >= ACCEPTABLE)


def thresholds(file: Path, rule: str, shares: Sequence[float]) -> dict[float, tuple[str, ...]]:
    """Flags of `caskd predict` with which a share of the tokens goes to the large model."""
    with np.load(file) as rows:
        ordered = np.sort(scores(dict(rows))[rule])[::-1]
    found = {}
    for share in shares:
        cut = float(ordered[round(share * len(ordered)) - 1])
        found[share] = _flags(rule, cut)
    return found


def _flags(rule: str, cut: float) -> tuple[str, ...]:
    """The flags of a rule whose scores from `cut` on go to the large model."""
    if rule == "log-probability":  # max q < 1 - alpha
        return ("--token-rule", "chow", "--alpha", f"{max(0.0, 1.0 - np.exp(-cut)):.8f}")
    if rule == "token-v3":  # p(a) < (1 - alpha) max p
        return ("--token-rule", rule, "--alpha", f"{min(1.0, max(0.0, 1.0 + cut)):.8f}")
    if rule == "call":
        return ("--token-rule", rule, f"--call-threshold={cut:.8f}")
    value = -cut if rule == "margin" else cut
    return ("--token-rule", rule, "--threshold", f"{max(0.0, value):.8f}")


def main() -> None:
    """Read the store once with the student."""
    from caskd.eval.next_token.teacher_forcing import store_rows, student_rows
    from caskd.models.decoding import load_for_decoding, open_router
    from caskd.store import TeacherStore

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("store")
    parser.add_argument("student")
    parser.add_argument("out", type=Path)
    parser.add_argument("--router")
    args = parser.parse_args()
    store = TeacherStore.open(args.store)
    loaded = load_for_decoding(args.student, "--student")
    router = None
    if args.router:
        router = open_router(args.router, "--router").scorer(loaded, "--router")
    rows, large = student_rows(loaded, store, None, router), store_rows(store, None)
    staged = args.out.with_suffix(".part.npz")
    questions = np.unique(large.questions, return_inverse=True)[1]
    arrays = {**asdict(rows), "large_right": large.right, "questions": questions}
    np.savez_compressed(staged, **{name: x.astype(np.float32) for name, x in arrays.items()})
    staged.rename(args.out)


if __name__ == "__main__":
    main()
