"""What `caskd init` writes for a survey: every table holds what its command takes."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caskd.cli.config_file import with_file
from caskd.cli.main import COMMANDS, resolve
from caskd.cli.project.values import (
    Project,
    micro_batch_size,
    script,
    tables,
    toml_text,
    toml_value,
)
from caskd.cli.values import check_words

PROJECT = Project(
    data=("train.jsonl",), test=("test.jsonl",), teacher="/models/big one", student="user/small",
    columns={"prompt_column": "question"}, shares_vocabulary=True, num_held_out=30,
)  # fmt: skip


def survey(**examples: int) -> dict[str, Any]:
    return {
        "examples": examples,
        "identity": {
            "vocabulary": {"size": 40},
            "text": {"max_length": 512, "kind": "messages"},
        },
        "geometry": {"num_rows": 5_000, "num_examples": 350},
        "teacher": {"num_ids": 48},
        "duplicates": {"examples": 2},
        "lengths": {"total": {"p99": 300}, "response": {"p99": 100}},
    }


def parsed(project: Project, facts: dict[str, Any]) -> dict[str, Any]:
    return tomllib.loads(toml_text(tables(project, facts)))


@pytest.mark.parametrize("shares_vocabulary", [True, False])
def test_every_table_is_what_its_command_takes(shares_vocabulary, tmp_path):
    project = replace(PROJECT, shares_vocabulary=shares_vocabulary)
    facts = survey(truncated=3, chat_refused=1, out_of_vocabulary=2)
    file = tmp_path / "caskd.toml"
    file.write_text(toml_text(tables(project, facts)))
    rest = {"predict": ["--model", "m", "--out", "o"]}
    for name in ("plan", "precompute", "train", "export", "predict", "eval"):
        config = resolve(COMMANDS[name].config)
        words, _ = with_file(file, rest.get(name, []), name, config, COMMANDS)
        check_words(config, words, name)


def test_the_values_follow_the_survey():
    found = parsed(PROJECT, survey(truncated=3))
    plan, train = found["plan"], found["train"]
    assert found["precompute"] == plan
    assert plan["top-k"] == 40
    assert plan["on-long"] == "truncate"
    assert plan["on-duplicate"] == "skip"
    assert plan["prompt-column"] == "question"
    assert "on-bad-chat" not in plan
    assert train["objective"] == "cat-xent"
    assert train["steps"] == 30  # 3 passes over 320 examples, 32 a step
    assert train["micro-batch-size"] == 8  # of 300 tokens, 4,096 a forward
    assert "teacher-tokenizer" not in train
    assert found["predict"]["max-new-tokens"] == 128


def test_a_student_with_other_tokens_gets_an_objective_for_it():
    train = parsed(replace(PROJECT, shares_vocabulary=False), survey())["train"]
    assert train["objective"] == "xent"
    assert train["teacher-tokenizer"] == PROJECT.teacher
    assert train["data"] == ["train.jsonl"]


@pytest.mark.parametrize("shares_vocabulary", [True, False])
def test_the_objective_is_the_one_that_the_page_of_starting_values_begins_with(shares_vocabulary):
    train = parsed(replace(PROJECT, shares_vocabulary=shares_vocabulary), survey())["train"]
    page = (Path(__file__).resolve().parents[3] / "docs/starting-values.md").read_text()
    for_others = [line for line in page.splitlines() if "another tokenizer" in line]
    rows = [line for line in page.splitlines() if line.startswith("| `--objective`")]
    (row,) = rows if shares_vocabulary else for_others
    assert row.split("|")[2].strip().startswith(f"`{train['objective']}`")


@pytest.mark.parametrize(
    ("longest", "size"), [(1, 32), (128, 32), (129, 16), (2048, 2), (2049, 1), (9000, 1), (0, 32)]
)
def test_micro_batches_have_at_most_4096_tokens(longest, size):
    assert micro_batch_size(longest) == size


@pytest.mark.parametrize("text", ['a "b" \\ c', "tab\tline\n", "ü 😀 \x7f", "--x"])
def test_texts_survive_toml(text):
    assert tomllib.loads(f"x = {toml_value(text)}")["x"] == text


def test_the_script_quotes_the_teacher():
    assert "--model '/models/big one' " in script(PROJECT)
