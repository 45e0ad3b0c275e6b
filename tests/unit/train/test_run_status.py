"""`caskd status`: the last step of a run from its files, and a watch that ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from caskd.cli.main import main
from caskd.train.status import run_status, watch


def write_run(run: Path, *lines: dict[str, object], tail: str = "") -> None:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(json.dumps({"config": {"steps": 3}}))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + tail)


def step(number: int, **more: object) -> dict[str, object]:
    return {"step": number, "loss": 2.0 / number, "keep_fraction": 0.75, "lr": 1e-3,
            "student_accuracy": 0.5, "tokens_per_second": 1234.0, **more}  # fmt: skip


def test_the_last_whole_line_counts(tmp_path, capsys):
    write_run(tmp_path / "run", step(1), step(2), tail='{"step": 3, "lo')
    assert run_status(tmp_path / "run")["step"] == 2
    assert main(["status", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert all(fact in said for fact in ("step 2 of 3", "loss 1.000", "keep 0.750", "1,234"))
    assert main(["status", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3


def test_a_run_before_its_first_step(tmp_path, capsys):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "step 0 of 3" in capsys.readouterr().out


def test_a_stopped_run_names_the_next_command(tmp_path, capsys):
    write_run(tmp_path / "run", step(1, stopped=True))
    assert main(["status", str(tmp_path / "run"), "--watch"]) == 0
    assert "--resume" in capsys.readouterr().out


def test_a_watch_ends_with_the_last_step(tmp_path):
    run, done = tmp_path / "run", [step(1)]
    write_run(run, *done)

    def sleep(_: float) -> None:
        assert len(done) < 3
        done.append(step(len(done) + 1))
        write_run(run, *done)

    watch(run, sleep=sleep)
    assert len(done) == 3


@pytest.mark.parametrize("content", [None, "{}", "no json", '{"config": {"steps": []}}'])
def test_a_folder_of_something_else_is_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["status", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path) in said
    assert "caskd train" in said


def test_it_imports_no_torch(tmp_path):
    write_run(tmp_path / "run", step(1))
    code = "import sys; from caskd.cli.main import main; assert main(['status', sys.argv[1]]) == 0"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=True, capture_output=True)


@pytest.mark.parametrize(
    "wrong", [{"loss": "2"}, {"step": 1.5}, {"keep_fraction": [1]}, {"tokens_per_second": True}]
)
def test_metrics_of_another_type_are_no_run(tmp_path, capsys, wrong):
    write_run(tmp_path / "run", {**step(1), **wrong})
    assert main(["status", str(tmp_path / "run")]) == 2
    assert "is no training run" in capsys.readouterr().err
