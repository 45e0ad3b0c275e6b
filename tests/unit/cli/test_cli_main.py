"""The `caskd` command: help, exit codes and error lines."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from caskd.cli import main as cli
from caskd.cli import streams
from caskd.cli.main import COMMANDS, Command, main
from caskd.store.errors import CorruptError, IdentityError, UsageError


@dataclass(frozen=True, kw_only=True)
class EchoConfig:
    names: tuple[str, ...] = ()
    num_steps: int = 3


received: list[EchoConfig] = []


def outcome() -> object:
    return None


def echo(config: EchoConfig) -> object:
    received.append(config)
    return outcome()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `caskd echo WORDS`, a command added to the table; `ends` makes its outcome."""
    received.clear()
    row = Command(f"{__name__}:EchoConfig", f"{__name__}:echo", "repeats its options")
    monkeypatch.setitem(COMMANDS, "echo", row)

    def call(*words: str, ends: Callable[[], object] = lambda: None) -> int:
        monkeypatch.setattr(sys.modules[__name__], "outcome", ends)
        return main(["echo", *words])

    return call


def raising(error: BaseException) -> Callable[[], object]:
    def end() -> object:
        raise error

    return end


def test_options_are_the_fields(run: Callable[..., int]) -> None:
    assert run("--num-steps", "5", "--names", "a", "--names", "b", "c") == 0
    assert received == [EchoConfig(names=("a", "b", "c"), num_steps=5)]


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (1, 1), ({"a": 1}, 0), ("text", 0)])
def test_an_integer_is_the_exit_code(run: Callable[..., int], value: object, code: int) -> None:
    assert run(ends=lambda: value) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("got a"), 2),
        (CorruptError("got a", cure="run b"), 1),
        (IdentityError("got a"), 3),
    ],
)
def test_a_users_mistake_is_one_line(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    assert run(ends=raising(error)) == code
    printed = capsys.readouterr()
    assert printed.err == f"caskd: {error}\n"
    assert printed.out == ""


def test_an_interrupt_is_one_line(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ends=raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "caskd: interrupted\n"


def test_a_bug_keeps_its_traceback(run: Callable[..., int]) -> None:
    with pytest.raises(ZeroDivisionError):
        run(ends=lambda: 1 / 0)


@pytest.mark.parametrize("words", [["--steps", "5"], ["--num-steps", "many"], ["stray"]])
def test_wrong_options_exit_2(run: Callable[..., int], words: list[str]) -> None:
    assert run(*words) == 2
    assert received == []


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in printed
        assert command.help in printed


@pytest.mark.parametrize("words", [["store"], ["store", "--help"]])
def test_store_is_a_group(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "store verify" in printed
    assert "precompute" not in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("caskd ")


@pytest.mark.parametrize(
    ("words", "close"),
    [
        (["precomput"], "'caskd precompute'"),
        (["trian"], "'caskd train'"),
        (["store", "inf"], "'caskd store info'"),
        (["stor"], "'caskd store'"),
    ],
)
def test_an_unknown_command_names_the_closest(
    words: list[str], close: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert close in printed
    assert printed.count("\n") == 1


def test_an_unknown_command_without_a_close_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zzz"]) == 2
    printed = capsys.readouterr().err
    assert "'zzz'" in printed
    assert "'caskd --help'" in printed
    assert "did you mean" not in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_each_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: caskd {name}" in capsys.readouterr().out


def test_python_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "caskd.cli", "trian"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "'caskd train'" in done.stderr


def test_a_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "caskd.cli", "--help"],
        stdout=write_end, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == streams.BROKEN_PIPE


@pytest.mark.parametrize(
    ("redirect", "code"),
    [(">&-", 0), (">/dev/full", 2), (">&- 2>&- <&-", 0), (">/dev/full 2>/dev/full", 2)],
)
def test_an_output_that_is_closed_or_full(redirect: str, code: int) -> None:
    for words, expected in (("--help", code), ("store info --help", code), ("trian", 2)):
        done = subprocess.run(
            ["sh", "-c", f'"{sys.executable}" -m caskd.cli {words} {redirect}'],
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == expected, (words, redirect)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        if redirect == ">/dev/full" and words != "trian":
            assert "No space left" in done.stderr
            assert "stdout" in done.stderr


def test_a_closed_stdout_is_not_given_to_a_file(tmp_path: Path) -> None:
    """The system gives a new file the lowest free number, and libraries print to number 1."""
    code = "import os, sys; from caskd.cli.main import main; main(['--version'])"
    code += "; file = open(sys.argv[1], 'w'); os.write(1, b'noise'); assert file.fileno() > 2"
    line = f'"{sys.executable}" -c "{code}" "{tmp_path / "file"}" >&-'
    subprocess.run(["sh", "-c", line], check=True)
    assert (tmp_path / "file").read_bytes() == b""


def test_a_working_directory_that_was_removed(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    line = f'mkdir "{gone}" && cd "{gone}" && rmdir "{gone}"'
    line += f' && "{sys.executable}" -m caskd.cli store info x'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "working directory" in done.stderr


@pytest.mark.parametrize("number", ["EMFILE", "EIO", "ENOSPC"])
def test_a_failure_of_the_system_is_one_line(
    number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> int:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)), "some-file")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["doctor"]) == (2 if number == "ENOSPC" else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "some-file" in line
    assert os.strerror(getattr(errno, number)) in line


def test_help_imports_no_numpy() -> None:
    code = "import sys; from caskd.cli.main import main; main(['--help'])"
    code += "; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
