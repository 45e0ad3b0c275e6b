"""The demo with fewer examples and steps."""

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.captures import sealed_files
from helpers.warm import WarmProcess

from caskd.cli.demo import runner
from caskd.cli.demo.runner import NUM_THREADS, Stages, run_demo, visible_gpus
from caskd.cli.demo.words import result
from caskd.cli.main import main
from caskd.store import TeacherStore, verify_store

NUM_TRAIN, NUM_TEST, STEPS = 600, 96, 12

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's output folder, and its printed text."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_demo(out, 0, num_train=NUM_TRAIN, num_test=NUM_TEST, steps=STEPS, device="cpu")
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
        "precompute", "store", "store", "store", "train", "train", "export", "export",
        "predict", "predict", "predict", "eval",
    ]  # fmt: skip
    assert str(out / "report" / "index.html") in printed
    assert printed.count("keep: the share of tokens") == 1
    assert printed.index("AUDC: the area") < printed.index("$ caskd eval")
    end = printed.rpartition("total")[2]
    assert "30 % of the questions" in end
    assert str(out / "report" / "deferral_curve.png") in end
    typed = [line.strip() for line in end.splitlines() if line.startswith("  caskd ")]
    assert "caskd init my-project --data train.jsonl --teacher BIG_MODEL" in typed[0]
    assert "--objective cat-xent" in printed


def test_the_result_names_the_figures_of_the_summary() -> None:
    figures = {"quality_at_30": 0.71, "quality_small": 0.4, "quality_large": 0.97}
    other = {**figures, "quality_at_30": 0.62, "quality_small": 0.3}
    smalls = [{"name": "cat-xent", "all": figures}, {"name": "xent", "all": other}]
    said = result({"smalls": smalls})
    assert [word for word in said.split() if word.strip(";,.").endswith("%")][1:] == [
        "71%", "62%;", "40%", "30%,", "97%."
    ]  # fmt: skip


def test_another_demo_is_refused_by_name(
    finished_demo: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished_demo[0]
    before = sorted(out.rglob("*"))
    assert main(["demo", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"--num-train 16000: the demo in {out} was started with {NUM_TRAIN}" in said
    assert main(["demo", "--out", str(out / "report")]) == 2
    assert sorted(out.rglob("*")) == before


def test_a_device_goes_to_every_command_that_runs_a_model(
    finished_demo: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for line in finished_demo[1].splitlines() if line.startswith("$ caskd ")]
    given = {line.split()[2] for line in lines if "--device cpu" in line}
    assert given == {"precompute", "predict"}
    assert visible_gpus("cpu") == {"CUDA_VISIBLE_DEVICES": ""}
    assert visible_gpus("auto") == visible_gpus("cuda") == {}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert visible_gpus("cuda:1") == {"CUDA_VISIBLE_DEVICES": "7"}


def test_a_device_that_is_not_there_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--device", "cuda:99"]) == 2
    assert "--device cuda:99" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


LEFT = {
    "prepare": ["train.jsonl"],
    "capture": ["train.jsonl", "test.jsonl", "models/teacher", "models/student", "store"],
    "train": ["train.jsonl", "test.jsonl", "models/teacher", "models/student", "models/xent",
              "store", "runs"],
    "eval": ["train.jsonl", "test.jsonl", "models", "store", "runs", "predictions"],
}  # fmt: skip
"""What a demo that was killed in a stage leaves behind."""


@pytest.mark.parametrize("stage", ["prepare", "capture", "train", "eval"])
def test_a_killed_demo_goes_on(
    finished_demo: tuple[Path, str], tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages before the kill are kept, and those after it give the same models and figures."""
    out = tmp_path / "out"
    for name in LEFT[stage]:
        source, target = finished_demo[0] / name, out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    settings = {"seed": 0, "num_train": NUM_TRAIN, "num_test": NUM_TEST, "steps": STEPS}
    if stage == "prepare":
        (out / "train.jsonl").write_text("half a li")
    else:
        settings["prepared"] = 1
    if stage == "capture":
        (out / "store" / "seal.json").unlink()
    if stage == "train":
        shutil.rmtree(out / "runs" / "cat-xent" / "checkpoints")
        (out / "runs" / "cat-xent" / "last-save.json").unlink()
    (out / "demo.json").write_text(json.dumps(settings))
    done = []
    run = Stages.run

    def counted(self: Stages, command: str, *args: str, **options: Any) -> None:
        done.append(command)
        run(self, command, *args, **options)

    def warm(lines: Sequence[Sequence[str]], device: str, _: object) -> int:
        if stage in ("prepare", "capture"):
            raise KeyboardInterrupt  # what follows is tried by the other stages
        done.extend("train" for _ in lines)
        more = {**visible_gpus(device), "OMP_NUM_THREADS": str(NUM_THREADS)}
        started = [WarmProcess(["-m", "caskd.cli", "train", *args], more) for args in lines]
        return max(process.wait() for process in started)

    monkeypatch.setattr(Stages, "run", counted)
    monkeypatch.setattr(runner, "_train_together", warm)  # the whole demo above starts real ones
    with contextlib.suppress(KeyboardInterrupt):
        run_demo(out, 0, num_train=NUM_TRAIN, num_test=NUM_TEST, steps=STEPS)
    if stage in ("prepare", "capture"):
        ours, theirs = (sealed_files(str(place / "store")) for place in (out, finished_demo[0]))
        assert ours == theirs
        return
    assert done.count("train") == {"train": 1, "eval": 0}[stage]
    ours, theirs = (
        json.loads((place / "report" / "summary.json").read_bytes())["smalls"]
        for place in (out, finished_demo[0])
    )
    assert [small["all"]["audc"] for small in ours] == [small["all"]["audc"] for small in theirs]
