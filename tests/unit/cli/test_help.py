"""Help pages: every flag once, most used first, examples that parse; completion in a shell."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from caskd.cli.arguments import flag_of
from caskd.cli.config_file import take_config
from caskd.cli.help import examples_of, help_page, purposes
from caskd.cli.help.fields import options_of
from caskd.cli.help.tables import EXAMPLES, MOST_USED, SECTIONS
from caskd.cli.main import COMMANDS, main, resolve
from caskd.cli.values import check_words


def page(name):
    return help_page(name, resolve(COMMANDS[name].config), "What it does.")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_shown_once_with_its_text(name):
    shown = page(name).rpartition("\nexamples:")[0]
    for option in options_of(resolve(COMMANDS[name].config)):
        head = re.escape(f"  {option.flag}")
        assert len(re.findall(rf"^{head}( |$)", shown, re.M)) == 1, option.flag
        assert option.text, option.flag
        assert option.text.split()[0] in shown
    assert "  --config FILE" in shown


@pytest.mark.parametrize("name", MOST_USED)
def test_the_most_used_flags_are_six_and_come_first(name):
    assert len(MOST_USED[name]) == 6
    flags = re.findall(r"^  (--[a-z-]+)", page(name), re.M)
    assert flags[:6] == [flag_of(field) for field in MOST_USED[name]]


@pytest.mark.parametrize("name", SECTIONS)
def test_sections_begin_at_fields_and_appear_once(name):
    fields = {option.name for option in options_of(resolve(COMMANDS[name].config))}
    assert SECTIONS[name].keys() <= fields
    titles = re.findall(r"^([a-z][^:\n]*):$", page(name), re.M)
    assert len(titles) == len(set(titles))
    assert "options" not in titles


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_lines_that_the_command_takes(name):
    config = resolve(COMMANDS[name].config)
    for line in examples_of(name, config):
        words = shlex.split(line.partition(" > ")[0])
        words = words[words.index("caskd.cli") + 1 :] if "caskd.cli" in words else words[1:]
        size = len(name.split())
        assert " ".join(words[:size]) == name
        rest, file = take_config(words[size:])
        if file is None:
            check_words(config, rest, name)
        else:
            assert {flag_of(w) for w in rest if w.startswith("--")} <= {
                option.flag for option in options_of(config)
            }


def test_tables_name_commands_that_exist():
    assert {*MOST_USED, *SECTIONS, *EXAMPLES} <= COMMANDS.keys()


def test_a_command_without_a_purpose_is_listed_too():
    found = purposes([*COMMANDS, "new thing"])
    assert found["others"] == ["new thing"]
    assert sorted(name for names in found.values() for name in names) == sorted(
        [*COMMANDS, "new thing"]
    )


def test_text_of_a_subclass_wins_over_that_of_its_base():
    texts = {o.name: o.text for o in options_of(resolve(COMMANDS["precompute"].config))}
    assert "unless --sample-responses" in texts["store"]
    assert "turns it off" in texts["eos"]
    assert texts["data"].startswith("Corpus files")


BASH = """
. "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); COMPREPLY=()
_caskd
echo "${COMPREPLY[*]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_and_values(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "caskd.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "my.toml").touch()
    for typed, expected in (
        ("pr", "precompute predict"),
        ("store sho", "show"),
        ("train --obj", "--objective"),
        ("train --zero-stage ", "0 1 2 3"),
        ("train --config m", "my.toml"),
        ("router fit --label g", "gap"),
        ("completion f", "fish"),
        ("store info --c", "--config"),
    ):
        done = subprocess.run(
            ["bash", "-c", BASH, "bash", script, "caskd", *typed.split(" ")],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.stdout.strip() == expected, typed
        assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_every_flag(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in COMMANDS:
        for option in options_of(resolve(COMMANDS[name].config)):
            if option.flag.startswith("--"):
                assert option.flag.removeprefix("--") in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_commands_flags_and_values(capsys, tmp_path):
    assert main(["completion", "fish"]) == 0
    (tmp_path / "caskd.fish").write_text(capsys.readouterr().out)
    for typed, expected in (
        ("caskd store sho", ["show"]),
        ("caskd train --obj", ["--objective"]),
        ("caskd completion z", ["zsh"]),
    ):
        code = f"source caskd.fish; complete -C '{typed}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        assert [line.split("\t")[0] for line in done.stdout.splitlines()] == expected


def test_completion_and_help_import_no_torch():
    code = "import sys; from caskd.cli.main import main; main(['completion', 'bash'])"
    code += "; assert not {'torch', 'transformers', 'deepspeed'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_each_section_of_train_is_one_run_of_fields():
    titles = list(SECTIONS["train"].values())
    assert len(titles) == len(set(titles))
