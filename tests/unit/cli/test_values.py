"""Every wrong word of a command line: one line with the flag, its value and what is expected."""

import dataclasses
from typing import get_type_hints

import pytest

from caskd.cli.arguments import flag_of
from caskd.cli.main import COMMANDS, main, resolve

TRAIN = ["train", "--store", "a", "--student", "b", "--out", "c", "--steps", "1"]
PLAN = ["plan", "--teacher", "t", "--data", "d", "--store", "s"]


def refused(capsys, words):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("caskd: ")
    assert said.err.count("\n") == 1
    assert "NoneType" not in said.err
    assert "╭" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ([*PLAN, "--top-k", "abc"], ("--top-k abc", "whole number")),
        ([*PLAN, "--min-mass", "abc"], ("--min-mass abc", "a number")),
        ([*PLAN, "--on-long", "foo"], ("--on-long foo", "error, truncate, skip")),
        ([*PLAN, "--device-map", "foo"], ("--device-map foo", "auto, balanced, sequential")),
        ([*PLAN, "--top-k", "0"], ("--top-k 0", "65,535")),
        ([*TRAIN, "--lr", "abc"], ("--lr abc", "a number")),
        ([*TRAIN, "--zero-stage", "7"], ("--zero-stage 7", "0, 1, 2, 3")),
        ([*TRAIN, "--save-every", "1.5"], ("--save-every 1.5", "whole number")),
        ([*TRAIN, "--steps", "0"], ("--steps 0", "at least 1")),
        ([*TRAIN, "--w", "2"], ("--w 2", "0 (teacher only) to 1")),
        ([*TRAIN, "--nope"], ("--nope", "--help")),
        ([*TRAIN, "--no-steps"], ("--no-steps", "--help")),
        ([*TRAIN, "--lora-rnk", "4"], ("--lora-rnk", "pass --lora-rank")),
        (["predict", "--model"], ("--model", "no value")),
        (["predict", "--model", "m"], ("--data and --out", "missing")),
        (["store", "show"], ("STORE", "missing")),
        (["status", "-x"], ("-x: no such flag of caskd status", "--help")),
        ([*TRAIN, "-lr", "1"], ("-lr: no such flag", "--help")),
        (["store", "show", "a", "b"], ("'b'", "STORE")),
        (["store", "show", "a", "--example", "x"], ("--example x", "whole number")),
    ],
)
def test_one_line_names_flag_value_and_form(capsys, words, facts):
    said = refused(capsys, words)
    assert all(fact in said for fact in facts), said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_number_is_checked(capsys, name):
    config = resolve(COMMANDS[name].config)
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if any(kind in str(hints[field.name]) for kind in ("int", "float")):
            said = refused(capsys, [*name.split(), flag_of(field.name), "abc"])
            assert f"{flag_of(field.name)} abc: expected" in said


def test_negative_numbers_and_none_are_values(capsys):
    assert "--top-k -3: expected 1 to" in refused(capsys, [*PLAN, "--top-k", "-3"])
    assert "--lr" not in refused(capsys, [*TRAIN, "--save-every", "None", "--nope"])


def test_help_names_what_is_required(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("(required, unless") == 2
