"""The acceptance of a student's drafts in the decoder's own texts, beside that along a store's."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caskd.eval.answers import Predictions, read_predictions, split_name
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import value_text

_RULE, _COLUMN = "spec", "expected_acceptance"


def own_acceptance(
    files: Sequence[str], students: Sequence[str], teacher: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """Read every `--token-cascade` of a report on next tokens.

    Args:
        files: FILE or NAME=FILE, each of another student.
        students: folders or hub ids of the students.
        teacher: identity of the store's teacher.

    Returns:
        By the student's index, the mean `expected_acceptance` of all tokens and their number.

    Raises:
        UsageError: a file is no token cascade, of another rule, or of a student that has one.
        IdentityError: its models are none of the students, or not the teacher.
    """
    if not files:
        return {}
    found: dict[int, dict[str, Any]] = {}
    digests = [_digest(student) for student in students]
    for value in files:
        _, file = split_name(value)
        answers = read_predictions(file)
        small, large = _models(file, answers)
        _check_teacher(file, large, teacher)
        index = _student_of(file, small, students, digests)
        if index in found:
            raise UsageError(
                f"--token-cascade {file}: is the second one of --student {students[index]}; "
                "expected one file a student; omit one"
            )
        weights = answers.numbers("output_tokens")
        mean = float(np.average(answers.numbers(_COLUMN), weights=weights))
        found[index] = {_COLUMN: mean, "num_tokens": int(weights.sum())}
    return found


def _models(file: str, answers: Predictions) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Identities of the small and the large model of a file with acceptances."""
    described = answers.metadata.get("token_cascade")
    described = described if isinstance(described, dict) else {}
    small, large = described.get("small"), described.get("large")
    known = isinstance(small, dict) and isinstance(large, dict)
    if described.get("rule") != _RULE or not known or _COLUMN not in answers.columns.column_names:
        rule = described.get("rule")
        of = "one model" if rule is None else f"rule {value_text(rule)}"
        raise UsageError(
            f"--token-cascade {file}: holds answers of {of}, without {_COLUMN}; expected those "
            f"of rule {_RULE} for --next-token; write them with caskd predict --model STUDENT "
            f"--large TEACHER --token-rule {_RULE}"
        )
    assert isinstance(small, dict)
    assert isinstance(large, dict)
    return small, large


def _check_teacher(file: str, large: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
    ours, theirs = large.get("weights_digest"), teacher.get("weights_digest")
    if ours and theirs and ours != theirs:
        raise IdentityError(
            f"--token-cascade {file}: its large model has weights {str(ours)[:12]}; expected those "
            f"of the store's teacher, {str(theirs)[:12]}; rerun caskd predict with that model as "
            "--large"
        )


def _digest(student: str) -> str | None:
    """As in a model's identity: that of a folder's weights; None for a hub id."""
    from caskd.models import weights_digest

    return weights_digest(Path(student)) if Path(student).is_dir() else None


def _student_of(
    file: str, small: Mapping[str, Any], students: Sequence[str], digests: Sequence[str | None]
) -> int:
    """Index of the student that drafted."""
    drafted = small.get("weights_digest")
    for index, (student, digest) in enumerate(zip(students, digests, strict=True)):
        if digest == drafted and (digest is not None or student == small.get("name")):
            return index
    shown = ", ".join(str(digest)[:12] for digest in digests)
    raise IdentityError(
        f"--token-cascade {file}: its small model {value_text(small.get('name'))} has weights "
        f"{str(drafted)[:12]}; expected those of a --student ({shown}); pass that student, or "
        "rerun caskd predict with this one"
    )


def own_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The acceptance in own texts beside the bounds, one line for each student that has it."""
    for student in summary["students"]:
        if (own := student.get("own_texts")) is not None:
            low, high = student[_COLUMN]
            yield (
                f"{student['label']}: in the decoder's own texts ({own['num_tokens']:,} tokens) "
                f"{own[_COLUMN]:.4f} of its tokens expected to be accepted; along the store's "
                f"texts {low:.4f} to {high:.4f}"
            )
