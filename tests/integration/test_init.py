"""`caskd init`: nothing is overwritten, no test prompt is trained on, and the script runs."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.warm import WarmProcess

from caskd.cli.demo.demo_models import TEACHER, write_student
from caskd.cli.demo.demo_tasks import write_corpus
from caskd.cli.main import main
from caskd.cli.project.init_command import InitConfig, digest_of_prompt

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of the demo's tasks and teacher, with a student of one layer."""
    folder = tmp_path_factory.mktemp("init")
    write_corpus(folder / "tasks.jsonl", 0, "train", 120)
    shutil.copytree(TEACHER, folder / "big")
    write_student(folder / "small", 0, hidden_size=32, num_layers=1)
    assert main(words(folder)) == 0
    return folder


def words(folder: Path, *more: str) -> list[str]:
    data, teacher, student = (str(folder / name) for name in ("tasks.jsonl", "big", "small"))
    own = str(folder / "own")
    return ["init", own, "--data", data, "--teacher", teacher, "--student", student, *more]


def records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_tenth_is_held_out_whole(project: Path) -> None:
    own = project / "own"
    train, test = records(own / "train.jsonl"), records(own / "test.jsonl")
    assert len(test) == 12
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    key = json.dumps
    assert sorted(map(key, train + test)) == sorted(map(key, records(project / "tasks.jsonl")))


def test_equal_prompts_go_to_one_side(project: Path, tmp_path: Path) -> None:
    lines = (project / "tasks.jsonl").read_text().splitlines(keepends=True)[:20]
    (tmp_path / "tasks.jsonl").write_text("".join(lines) * 2)
    for name in ("big", "small"):
        (tmp_path / name).symlink_to(project / name)
    assert main(words(tmp_path)) == 0
    train, test = (records(tmp_path / "own" / f"{name}.jsonl") for name in ("train", "test"))
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    assert len(train) + len(test) == 40
    assert 'on-duplicate = "skip"' in (tmp_path / "own" / "caskd.toml").read_text()


@pytest.mark.parametrize("name", ["caskd.toml", "run.sh", "train.jsonl", "test.jsonl"])
def test_an_existing_file_is_kept(
    project: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    line = words(project)
    line[1] = str(tmp_path)
    assert main(line) == 2
    assert name in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_too_few_prompts_ask_for_a_test_file(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (project / "tasks.jsonl").read_text().splitlines(keepends=True)[0]
    (tmp_path / "tasks.jsonl").write_text(line * 3)
    for name in ("big", "small"):
        (tmp_path / name).symlink_to(project / name)
    assert main(words(tmp_path)) == 2
    assert "--test FILE" in capsys.readouterr().err
    assert main(words(tmp_path, "--test", str(tmp_path / "tasks.jsonl"))) == 0
    assert not (tmp_path / "own" / "train.jsonl").exists()


def test_test_data_without_the_columns_is_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(project)
    line[1] = str(tmp_path / "own")
    for text, fact in (('{"question": "a", "answer": "b"}', "'prompt'"), ('{"text": "a"}', "text")):
        (tmp_path / "test.jsonl").write_text(text)
        assert main([*line, "--test", str(tmp_path / "test.jsonl")]) == 2
        said = capsys.readouterr().err
        assert "caskd: --test " in said
        assert fact in said
    assert not (tmp_path / "own").exists()


def test_another_init_in_the_folder_is_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(project)
    line[1] = str(tmp_path)
    lock = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
    code = f"{lock}print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / ".claim")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert main(line) == 2
        other.kill()
    assert "in use by another caskd process" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {".claim"}


def test_the_commands_of_the_script_run_in_order(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the script runs them, but in this process, where torch is already imported."""
    own = project / "own"
    monkeypatch.chdir(own)
    assert (own / "run.sh").stat().st_mode & stat.S_IXUSR
    lines = re.findall(r"^ *caskd (.*)$", (own / "run.sh").read_text(), re.M)
    names = ["plan", "precompute", "train", "export", "predict", "predict", "eval"]
    assert [line.split()[0] for line in lines] == names
    for line in lines:
        typed = shlex.split(line.replace("$resume", "--no-resume"))
        if typed[0] == "train":  # DeepSpeed supports one run per process
            fewer = ["--steps", "2", "--warmup-steps", "0"]
            assert WarmProcess(["-m", "caskd.cli", *typed, *fewer]).wait() == 0
        else:
            assert main(typed) == 0, line
    assert (own / "report" / "index.html").is_file()


@pytest.mark.nightly
def test_the_script_runs_as_written(project: Path, tmp_path: Path) -> None:
    line = words(project)
    line[1] = str(tmp_path / "own")
    assert main(line) == 0
    caskd = tmp_path / "bin" / "caskd"
    caskd.parent.mkdir()
    caskd.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m caskd.cli "$@"\n')
    caskd.chmod(0o755)
    env = {**os.environ, "PATH": f"{caskd.parent}:{os.environ['PATH']}"}
    for _ in range(2):  # the second time nothing is left to do but the report
        subprocess.run([tmp_path / "own" / "run.sh"], check=True, env=env)
    assert (tmp_path / "own" / "report" / "index.html").is_file()


def test_system_messages_do_not_make_prompts_equal() -> None:
    system = {"role": "system", "content": "Be brief."}
    config = InitConfig(dir=Path("x"), data=(), teacher="t", student="s")
    one, other = (
        {"messages": [system, {"role": "user", "content": text}]} for text in ("first", "second")
    )
    assert digest_of_prompt(one, config) != digest_of_prompt(other, config)
    assert digest_of_prompt(one, config) == digest_of_prompt(dict(one), config)


@pytest.mark.parametrize("name", ["student", "run", "train.jsonl"])
def test_a_folder_with_results_is_refused(project: Path, tmp_path: Path, capsys, name) -> None:
    for model in ("big", "small", "tasks.jsonl"):
        (tmp_path / model).symlink_to(project / model)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / name).symlink_to("nowhere")
    assert main(words(tmp_path)) == 2
    assert name in capsys.readouterr().err
    assert os.listdir(tmp_path / "own") == [name]


def test_a_missing_test_file_is_found(project: Path, tmp_path: Path) -> None:
    for model in ("big", "small", "tasks.jsonl"):
        (tmp_path / model).symlink_to(project / model)
    assert main(words(tmp_path, "--test", str(tmp_path / "nope.jsonl"))) == 2
    assert not (tmp_path / "own").exists()
