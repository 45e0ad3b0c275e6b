"""`caskd router fit`: a student's rows, their labels, the fit, and the files of a router."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from caskd.eval.config import RouterFitConfig
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.store.io import check_room, claimed, tell

if TYPE_CHECKING:
    from caskd.models.decoding import LoadedModel, TokenRouter

_SPLITS = {"fit": 0.6, "validation": 0.1, "threshold": 0.1, "test": 0.2}
_LEAST_QUESTIONS = 10


def router_fit_command(config: RouterFitConfig) -> "TokenRouter":
    """Run `caskd router fit`.

    Raises:
        UsageError: a flag is wrong, the store or the student cannot be read, or a split lacks
            rows of a label.
        IdentityError: the student's vocabulary is not the store's.
    """
    from caskd.eval.next_token.teacher_forcing import check_teacher
    from caskd.models.decoding import load_for_decoding

    _check_flags(config)
    out = Path(config.out)
    store = TeacherStore.open(config.store)
    check_teacher(store, f"--store {config.store}")
    loaded = load_for_decoding(config.student, "--student")
    if loaded.identity["weights_digest"] is None:
        raise UsageError(
            f"--student {config.student}: is no folder, so that its weights have no digest; "
            "expected a folder with safetensors; save the student there with save_pretrained"
        )
    with claimed(out, "--out"):
        router = _fit(config, store, loaded)
        router.save(out)
    for line in _lines(router, config):
        tell(line)
    return router


def _check_flags(config: RouterFitConfig) -> None:
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"--out {out}: is a file, or a folder that holds something; expected a new or empty "
            "folder; pass another one"
        )
    check_room(out, "--out")
    if not 0.0 < config.recall <= 1.0:
        raise UsageError(
            f"--recall {config.recall:g}: expected a share, more than 0 and at most 1; pass "
            "another number"
        )
    if config.seed < 0:
        raise UsageError(f"--seed {config.seed}: expected 0 or more; pass another number")
    if config.limit is not None and config.limit < 1:
        raise UsageError(f"--limit {config.limit}: expected 1 or more; pass another number")


def _fit(config: RouterFitConfig, store: TeacherStore, loaded: "LoadedModel") -> "TokenRouter":
    from caskd.eval.curves import auroc
    from caskd.eval.next_token.router_fit import fit_network, probabilities, recall_threshold
    from caskd.eval.next_token.router_rows import ACCEPTABLE_RATIO, labels_of, router_rows
    from caskd.models.decoding import TokenRouter, student_identity

    rows = router_rows(loaded, store, config.limit)
    labels = labels_of(config.label, rows)
    parts = split_questions(rows.questions)
    if np.unique(rows.questions).size < _LEAST_QUESTIONS:
        raise UsageError(
            f"--store {config.store}: {np.unique(rows.questions).size} different questions; "
            f"expected {_LEAST_QUESTIONS} or more, which are split into those of the fit, of its "
            "end, of the threshold and of the test; pass a larger store or --limit"
        )
    for name in ("fit", "validation", "threshold"):
        _check_labels(config, name, labels[parts[name]])
    network, epochs = fit_network(rows, labels, parts["fit"], parts["validation"], config.seed)
    routed = {name: probabilities(network, rows, part) for name, part in parts.items()}
    threshold, found = recall_threshold(
        routed["threshold"], labels[parts["threshold"]], config.recall
    )
    known = ~parts["test"]
    test = labels[parts["test"]]
    both = 0 < test.sum() < len(test)
    description: dict[str, Any] = {
        "label": config.label,
        "acceptable_ratio": ACCEPTABLE_RATIO,
        "threshold": threshold,
        "recall_target": config.recall,
        "recall": found,
        "seed": config.seed,
        "epochs": epochs,
        "student": student_identity(loaded),
        "store": {"name": store.name, "digest": store.digest},
        "label_is_argmax": float(rows.teacher_right.mean()),
        "splits": {
            name: {
                "questions": int(np.unique(rows.questions[part]).size),
                "rows": int(part.sum()),
                "positive": int(labels[part].sum()),
            }
            for name, part in parts.items()
        },
        "test": {
            "auroc": auroc(routed["test"], 1.0 - test) if both else None,
            "recall": float((routed["test"] >= threshold)[test > 0].mean()) if both else None,
            "routed_share": float((routed["test"] >= threshold).mean()),
        },
    }
    return TokenRouter(network, rows.reader.sizes, description, np.unique(rows.questions[known]))


def split_questions(questions: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which rows [N] belong to each split: whole questions, in the order of their digests."""
    ordered = np.unique(questions)
    place = np.searchsorted(ordered, questions)
    borders = np.round(np.cumsum([0.0, *_SPLITS.values()]) * ordered.size)
    return {
        name: (borders[index] <= place) & (place < borders[index + 1])
        for index, name in enumerate(_SPLITS)
    }


def _check_labels(config: RouterFitConfig, name: str, labels: npt.NDArray[np.float64]) -> None:
    if not 0 < labels.sum() < len(labels):
        raise UsageError(
            f"--label {config.label}: {int(labels.sum()):,} of {len(labels):,} tokens of the split "
            f"{name!r} have it; expected some tokens with and some without; pass another --label, "
            "or a larger store or --limit"
        )


def _lines(router: "TokenRouter", config: RouterFitConfig) -> list[str]:
    facts: Mapping[str, Any] = router.description
    splits, test = facts["splits"], facts["test"]
    rows = sum(split["rows"] for split in splits.values())
    positive = sum(split["positive"] for split in splits.values())
    auroc = "unknown" if test["auroc"] is None else f"{test['auroc']:.3f}"
    recall = "unknown" if test["recall"] is None else f"{test['recall']:.1%}"
    return [
        f"{rows:,} tokens, {positive:,} ({positive / rows:.1%}) labelled {config.label}; "
        f"{facts['label_is_argmax']:.1%} of the store's tokens are the teacher's own choice",
        f"threshold {facts['threshold']:g}: recall {facts['recall']:.1%} of its split "
        f"(asked: {facts['recall_target']:.1%})",
        f"test: AUROC {auroc}, recall {recall}, {test['routed_share']:.1%} of tokens to the large "
        f"model, {splits['test']['rows']:,} tokens",
        f"router: {config.out}, {router.num_parameters:,} parameters",
    ]
