"""User errors: one line, an exit code, no partial output."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.tiny import ALPHABET, save_tiny, tiny_model, tiny_tokenizer
from helpers.training import capture, config_for

from caskd.cli.main import main
from caskd.train import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mistakes")
    capture(directory)
    return directory


@pytest.fixture(scope="module")
def finished(root: Path) -> Path:
    config = config_for(root, out="finished", steps=1)
    train(config)
    return config.out


def check_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    assert main(words) == code
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("caskd:") and "; skipped" not in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in errors[0]


def words(root: Path, out: Path, **changes: str) -> list[str]:
    options = {
        "store": str(root / "store"),
        "student": str(root / "student"),
        "out": str(out),
        "steps": "2",
        "global-batch-size": "4",
        "micro-batch-size": "4",
        **changes,
    }
    return ["train", *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_no_store(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = words(root, tmp_path / "run", store=str(tmp_path / "none"))
    check_refused(capsys, command, 2, "no store.json")
    assert not (tmp_path / "run").exists()


def test_a_store_that_is_not_sealed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(root / "store", store)
    (store / "seal.json").unlink()
    check_refused(capsys, words(root, tmp_path / "run", store=str(store)), 2, "not sealed")
    assert not (tmp_path / "run").exists()


def test_no_student(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = words(root, tmp_path / "run", student=str(tmp_path / "none"))
    check_refused(capsys, command, 2, "--student")
    assert not (tmp_path / "run").exists()


def test_a_student_with_another_vocabulary(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer(ALPHABET[::-1])  # as many tokens, in another order
    tiny_model(tokenizer).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    command = words(root, tmp_path / "run", student=str(tmp_path / "student"))
    check_refused(capsys, command, 3, "token ids would be misread")
    assert not (tmp_path / "run").exists()


def test_a_student_that_is_too_narrow(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "student", vocab_size=40)
    command = words(root, tmp_path / "run", student=str(tmp_path / "student"))
    check_refused(capsys, command, 2, "its embedding has 40 rows")
    assert not (tmp_path / "run").exists()


def test_a_student_that_is_wider_is_fine(root: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "student", vocab_size=64)
    assert main(words(root, tmp_path / "run", student=str(tmp_path / "student"))) == 0


def test_an_output_that_holds_a_run(
    root: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(capsys, words(root, finished), 2, "already contains a run")


def test_resume_without_a_checkpoint(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    command = [*words(root, tmp_path / "run"), "--resume"]
    check_refused(capsys, command, 2, "no complete checkpoint")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_batch_that_cannot_be_divided(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(root, tmp_path / "run", **{"global-batch-size": "6"})
    check_refused(capsys, command, 2, "pass --global-batch-size 8")


def test_a_deepspeed_file_that_contradicts_a_flag(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    command = words(root, tmp_path / "run", **{"deepspeed-config": str(path)})
    check_refused(
        capsys, command, 2, "zero_optimization.stage is 3; expected 1, which --zero-stage gives"
    )


def test_export_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    for path in (tmp_path / "none", tmp_path / "run", tmp_path / "run/checkpoints/step-00000001"):
        command = ["export", str(path), str(tmp_path / "out")]
        check_refused(capsys, command, 2, "complete checkpoint")
        assert not (tmp_path / "out").exists()


def test_export_into_something(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    command = ["export", str(finished), str(tmp_path)]
    check_refused(capsys, command, 2, "expected a new or empty directory")
    assert (tmp_path / "file").read_text() == "mine"


def test_export_of_damaged_weights(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(root, out=str(tmp_path / "run"), steps=1)
    last = train(config)
    content = bytearray((last / "weights" / "00000.safetensors").read_bytes())
    content[-1] ^= 1
    (last / "weights" / "00000.safetensors").write_bytes(content)
    command = ["export", str(last), str(tmp_path / "out")]
    check_refused(capsys, command, 1, "weights/00000.safetensors differs")
    assert not (tmp_path / "out").exists()
