"""`--config FILE`: values from a file, wrong ones in one line, and flags that win over them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_type_hints

import pytest
import tyro

from caskd.cli import config_file
from caskd.cli.arguments import flag_of, is_sequence
from caskd.cli.main import COMMANDS, Command, main, resolve
from caskd.cli.values import kinds_of
from caskd.store.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EchoConfig:
    run: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path] = Path("out")
    names: tuple[str, ...] = ()
    num_steps: int = 3
    rate: float | None = None
    level: Literal[0, 1, "high"] = 0
    quick: bool = False
    note: str | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UsageError(f"--num-steps {self.num_steps}: expected 1 or more; pass more")
        if self.quick and self.level == 1:
            raise UsageError("--quick: was given with --level 1; expected one; omit the other")


received: list[EchoConfig] = []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run `caskd echo WORDS` with a config file of the text."""
    received.clear()
    row = Command(f"{__name__}:EchoConfig", f"{__name__}:echo", "repeats its options")
    monkeypatch.setitem(COMMANDS, "echo", row)
    monkeypatch.chdir(tmp_path)

    def call(text: str, *words: str) -> int:
        Path("c.toml").write_text(text)
        return main(["echo", *words, "--config", "c.toml"])

    return call


def echo(config: EchoConfig) -> None:
    received.append(config)


def test_the_file_gives_every_kind_of_value(run: Callable[..., int]) -> None:
    text = """
        [echo]
        run = "r"
        names = ["a", "b c"]
        num-steps = 7
        rate = 2e-5
        level = "high"
        quick = true
        note = "--not a flag\\nsecond line"
        [train]
        anything = "of another command"
    """
    assert run(text) == 0
    assert received == [
        EchoConfig(
            run=Path("r"), names=("a", "b c"), num_steps=7, rate=2e-5, level="high", quick=True,
            note="--not a flag\nsecond line",
        )
    ]  # fmt: skip


def test_flags_win(run: Callable[..., int]) -> None:
    text = """
        [echo]
        run = "r"
        out = "o"
        names = ["a", "b"]
        num_steps = 7
        quick = true
        note = "file"
    """
    assert run(text, "--names", "c", "--no-quick", "--num-steps=8", "mine") == 0
    assert received == [
        EchoConfig(run=Path("mine"), out=Path("o"), names=("c",), num_steps=8, note="file")
    ]


def test_a_file_without_the_table_changes_nothing(run: Callable[..., int]) -> None:
    assert run("[train]\nlr = 1\n", "r") == 0
    assert run('[store.info]\nstore = "s"\n', "r") == 0
    assert received == [EchoConfig(run=Path("r"))] * 2


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("[echo]\nnum_stps = 5", ("c.toml [echo] num_stps = 5", "write num-steps")),
        ("[echo]\nnum_steps = '5'", ('c.toml [echo] num_steps = "5"', "a whole number")),
        ("[echo]\nnum_steps = 5.0", ("num_steps = 5.0", "a whole number")),
        ("[echo]\nnum_steps = true", ("num_steps = true", "a whole number")),
        ("[echo]\nquick = 1", ("quick = 1", "true or false")),
        ("[echo]\nnote = 1", ("note = 1", "a text")),
        ("[echo]\nnote = ['a']", ("note = ['a']", "a text")),
        ("[echo]\nnames = [1]", ("names = [1]", "a list of a text")),
        ("[echo]\nnames = ['--x']", ("names = ['--x']", "a list")),
        ("[echo]\nlevel = 2", ("level = 2", "0, 1, high")),
        ("[echo]\nlevel = true", ("level = true", "0, 1, high")),
        ("[echo]\nrate = {}", ("rate = {}", "a number")),
        ("[echo]\nnum-steps = 1\nnum_steps = 2", ("num_steps = 2", "twice")),
        ("[echo]\nnum_steps = 0", ("c.toml [echo]: --num-steps 0", "1 or more")),
        ("[ehco]\nrun = 'r'", ("c.toml [ehco]", "write [echo]")),
        ("[store]\njson = true", ("store.json = true", "table")),
        ("[store.inf]\njson = true", ("[store.inf]", "write [store.info]")),
        ("num_steps = 5", ("num_steps = 5", "no command's table")),
        ("[echo]\nrun = \n", ("c.toml", "line 2")),
        ("[echo]\nout = 'o'", ("RUN", "missing")),
    ],
)
def test_a_mistake_is_one_line(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], text: str, facts: tuple[str, ...]
) -> None:
    words = () if "out" in text else ("r",)
    assert run(text, *words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(fact in said for fact in facts), said
    assert not received


def test_an_error_about_a_flag_does_not_blame_the_file(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("[echo]\nnum_steps = 5", "r", "--num-steps", "0") == 2
    assert "c.toml" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words", "blamed"),
    [
        ("[echo]\nlevel = 1", ("--quick",), True),  # the message begins with the other flag
        ("[echo]\nnote = 'x'", ("--quick", "--level=1"), False),
    ],
)
def test_an_error_about_two_flags_blames_the_file_for_its_own(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], text, words, blamed
) -> None:
    assert run(text, "r", *words) == 2
    assert ("c.toml [echo]: --quick" in capsys.readouterr().err) == blamed


@pytest.mark.parametrize("words", [["--config"], ["--config", "--out"], ["--config="]])
def test_a_flag_without_a_file_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *words]) == 2
    assert "--config: has no value" in capsys.readouterr().err


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--config", str(tmp_path)]) == 2
    assert main(["doctor", "--config", str(tmp_path / "none.toml")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "regular file" in first
    assert "No such file" in second


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_every_command_takes_a_value(name: str, tmp_path: Path) -> None:
    """A file with a value for each flag gives the same config as the flags themselves."""
    config_class = resolve(COMMANDS[name].config)
    hints = get_type_hints(config_class)
    lines = []
    for field in dataclasses.fields(config_class):
        kind = kinds_of(hints[field.name])[0]
        texts = {int: "5", float: "0.5", bool: "true"}
        choices = getattr(kind, "__args__", None)
        text = texts.get(kind, repr(choices[0]) if choices else "'some text'")
        lines.append(f"{field.name} = {f'[{text}]' if is_sequence(hints[field.name]) else text}")
    file = tmp_path / "c.toml"
    file.write_text(f"[{name.replace(' ', '.')}]\n" + "\n".join(lines))
    words, origin = config_file.with_file(file, [], name, config_class, COMMANDS)
    flags = {flag_of(field.name) for field in dataclasses.fields(config_class)}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} == origin.flags
    assert origin.flags <= flags
    assert len(origin.flags) + sum(not w.startswith("--") for w in words) >= len(flags)


@pytest.mark.parametrize(
    "line",
    [
        "steps = 0x" + "f" * 6000,
        ".".join(["a"] * 30_000) + " = 1",
        '"a" . ' * 30_000 + "a = 1",
        "steps." + ".".join(["a"] * 40) + " = 1",
        "steps = " + "[" * 40 + "]" * 40,
        '"' + "k" * 9_000 + '" = 1',
        'student = "a\\u0000b"',
        'store = ["a\\u0000b"]',
    ],
    ids=["digits", "dots", "quoted", "depth", "brackets", "key", "nul", "nul in a list"],
)
def test_a_hostile_file_is_one_short_line(tmp_path, capsys, line):
    path = tmp_path / "c.toml"
    path.write_text(f"[train]\n{line}\n")
    assert main(["train", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 500
    assert str(path) in said


def test_a_place_that_looks_like_a_flag_is_refused(tmp_path, capsys):
    path = tmp_path / "c.toml"
    path.write_text('[status]\nrun = "-x"\n')
    assert main(["status", "--config", str(path)]) == 2
    assert 'run = "-x"' in capsys.readouterr().err
