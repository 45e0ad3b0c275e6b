"""The demo with fewer examples and steps."""

import contextlib
import io
import json
from pathlib import Path

import pytest

from caskd.cli.demo.runner import run_demo
from caskd.cli.main import main
from caskd.store import TeacherStore, verify_store

NUM_TRAIN, NUM_TEST, STEPS = 600, 96, 12

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's output folder, and its printed text."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_demo(out, 0, num_train=NUM_TRAIN, num_test=NUM_TEST, steps=STEPS)
    return out, printed.getvalue()


def test_the_report_is_there(finished_demo: tuple[Path, str]) -> None:
    report = finished_demo[0] / "report"
    assert (report / "deferral_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (report / "index.html").read_text(encoding="utf-8")
    summary = json.loads((report / "summary.json").read_bytes())
    assert [small["name"] for small in summary["smalls"]] == ["cat-xent", "xent"]
    assert summary["large"]["name"] == "teacher"


def test_the_store_verifies(finished_demo: tuple[Path, str]) -> None:
    store = finished_demo[0] / "store"
    report = verify_store(store)
    assert report.ok, report.problems
    assert len(TeacherStore.open(store)) == NUM_TRAIN


def test_both_students_start_equal_and_see_the_same_order(finished_demo: tuple[Path, str]) -> None:
    first = {}
    for name in ("xent", "cat-xent"):
        lines = (finished_demo[0] / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == STEPS
        first[name] = json.loads(lines[0])
    assert first["xent"]["teacher_accuracy"] == first["cat-xent"]["teacher_accuracy"]
    assert first["xent"]["student_accuracy"] == first["cat-xent"]["student_accuracy"]
    assert first["xent"]["keep_fraction"] == 1.0
    assert first["cat-xent"]["keep_fraction"] < 1.0


def test_the_teacher_leads_and_leaves_room(finished_demo: tuple[Path, str]) -> None:
    summary = json.loads((finished_demo[0] / "report" / "summary.json").read_bytes())
    for small in summary["smalls"]:
        figures = small["all"]
        assert figures["quality_large"] > 0.8
        assert figures["quality_small"] + 0.05 < figures["quality_large"] < 1.0


def test_it_prints_commands_paths_and_times(finished_demo: tuple[Path, str]) -> None:
    out, printed = finished_demo
    typed = [line.split()[2] for line in printed.splitlines() if line.startswith("$ caskd ")]
    assert typed == [
        "precompute", "store", "store", "store", "train", "export", "train", "export",
        "predict", "predict", "predict", "eval",
    ]  # fmt: skip
    assert str(out / "report" / "index.html") in printed
    assert "caskd precompute --teacher BIG_MODEL" in printed
    assert "train cat-xent" in printed


def test_a_folder_in_use_is_refused(
    finished_demo: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished_demo[0].rglob("*"))
    assert main(["demo", "--out", str(finished_demo[0])]) == 2
    assert str(finished_demo[0]) in capsys.readouterr().err
    assert sorted(finished_demo[0].rglob("*")) == before
