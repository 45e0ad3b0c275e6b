"""`caskd store audit`: how far a store's texts are from a student that will train on them.

The probability of each label under the student, by its own forward pass, beside that under the
teacher, which the store holds. Labels that a student finds almost impossible are the bottleneck of
training on a teacher's texts (RSD, arXiv 2509.22230, which draws the line at 1 %).

Legend: N rows.
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from caskd.eval.config import StoreAuditConfig
from caskd.eval.study import ALL_TASKS
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.store.io import strip_control, tell

if TYPE_CHECKING:
    from caskd.eval.next_token.teacher_forcing import ForcedRows, StoreRows

THRESHOLDS = (0.001, 0.01, 0.1)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75)
_MAIN = 0.01


def store_audit_command(config: StoreAuditConfig) -> dict[str, Any]:
    """Run `caskd store audit`; return what `--json` prints.

    Raises:
        UsageError: a flag is wrong, the student cannot be read, or the store lacks the teacher's
            label log-probabilities.
        IdentityError: the student's vocabulary is not the store's.
    """
    from caskd.eval.next_token.teacher_forcing import store_rows, student_rows
    from caskd.models.decoding import load_for_decoding

    if config.limit is not None and config.limit < 1:
        raise UsageError(f"--limit {config.limit}: expected 1 or more; pass another number")
    store = TeacherStore.open(config.store)
    teacher = store_rows(store, config.limit, config.store)
    loaded = load_for_decoding(config.student, "--student", device=config.device)
    student = student_rows(loaded, store, config.limit)
    found = {
        "store": {"name": strip_control(store.name), "digest": store.digest},
        "student": {name: loaded.identity[name] for name in ("name", "weights_digest")},
        "label_is_argmax": float(teacher.right.mean()),
        "expected_acceptance": [
            float(student.acceptance_low.mean()),
            float(student.acceptance_high.mean()),
        ],
        "tasks": audit_rows(student, teacher, store.spec.tasks),
    }
    tell(json.dumps(found, indent=1) if config.json else "\n".join(_lines(found)))
    return found


def audit_rows(
    student: "ForcedRows", teacher: "StoreRows", tasks: tuple[str, ...] | list[str]
) -> dict[str, dict[str, Any]]:
    """Figures of all rows, and of each task where there are several.

    Args:
        student: the student's values [N].
        teacher: the teacher's values of the same rows.
        tasks: names of the tasks that `teacher.tasks` indexes.
    """
    ours, theirs = np.exp(student.label_logprob), np.exp(teacher.label_logprob)
    everything = np.ones(len(ours), dtype=bool)
    parts = {ALL_TASKS: everything}
    present = np.unique(teacher.tasks)
    if len(present) > 1:
        parts |= {strip_control(tasks[task]): teacher.tasks == task for task in present}
    return {
        name: label_figures(ours[part], theirs[part], teacher.examples[part])
        for name, part in parts.items()
    }


def label_figures(
    student: npt.NDArray[np.float64],
    teacher: npt.NDArray[np.float64],
    examples: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """Shares of labels below each threshold, and quantiles (numpy's linear rule), of some rows.

    Args:
        student: [N] probabilities of the labels.
        teacher: [N] the same under the teacher.
        examples: [N] example of each row.
    """
    far = np.unique(examples[student < _MAIN])
    num_examples = len(np.unique(examples))
    return {
        "num_rows": len(student),
        "num_examples": num_examples,
        "examples_with_far_labels": len(far) / num_examples,
        **{
            name: {
                "below": {f"{t:g}": float((p < t).mean()) for t in THRESHOLDS},
                "quantiles": {f"{q:g}": float(np.quantile(p, q)) for q in QUANTILES},
            }
            for name, p in (("student", student), ("teacher", teacher))
        },
    }


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    rows = found["tasks"]
    whole = rows[ALL_TASKS]
    low, high = found["expected_acceptance"]
    yield (
        f"{found['store']['name']}: {whole['num_rows']:,} labels of {whole['num_examples']:,} "
        f"examples, read by {found['student']['name']}"
    )
    heads = [f"< {100 * t:g} %" for t in THRESHOLDS] + [f"q{100 * q:g}" for q in QUANTILES]
    width = max(len(name) for name in rows)
    yield f"{'':{width}}  {'model':8}" + "".join(f"{head:>10}" for head in heads)
    for name, row in rows.items():
        for model in ("student", "teacher"):
            shares = "".join(f"{share:>10.2%}" for share in row[model]["below"].values())
            values = "".join(f"{value:>10.4f}" for value in row[model]["quantiles"].values())
            yield f"{name if model == 'student' else '':{width}}  {model:8}{shares}{values}"
    yield (
        f"labels below 1 % under the student: {whole['student']['below']['0.01']:.2%} (teacher "
        f"{whole['teacher']['below']['0.01']:.2%}), in {whole['examples_with_far_labels']:.1%} of "
        "the examples"
    )
    yield f"a token drawn by the student is accepted by the teacher: {low:.4f} to {high:.4f}"
