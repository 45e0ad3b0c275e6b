"""Token cascades from the command line to the report."""

import csv
import json
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from helpers.pairs import save_pair
from helpers.tiny import ragged_records, write_jsonl

from caskd.cli.main import main
from caskd.eval import PredictConfig, predict
from caskd.eval.answers import CASCADE_COUNTS, read_predictions
from caskd.eval.config import TokenRuleName
from caskd.eval.inference.cascades import rule_flags
from caskd.eval.study.token_cascades import read_token_cascades
from caskd.models.decoding import TOKEN_RULES, TokenCascade, load_for_decoding
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import files

NEW_TOKENS = 6
RECORDS = ragged_records(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models in float32, the data, and predictions of each model alone."""
    root = tmp_path_factory.mktemp("cascade")
    save_pair(root, torch.float32)
    write_jsonl(root / "data.jsonl", RECORDS)
    for name in ("small", "large"):
        run(root, root / f"{name}.parquet", model=str(root / name), large=None, token_rule=None)
    return root


def run(root, out, **options):
    options = {
        "model": str(root / "small"), "large": str(root / "large"), "token_rule": "token-v3",
        "data": (str(root / "data.jsonl"),), "out": str(out), "max_new_tokens": NEW_TOKENS,
        "device": "cpu", "task_metric": ("chrf",), **options,
    }  # fmt: skip
    return predict(PredictConfig(**options))


@pytest.fixture(scope="module")
def written(folder):
    return run(folder, folder / "cascade.parquet")


def test_the_file_holds_the_answers_and_what_they_cost(folder, written, capsys):
    small, large = (
        load_for_decoding(str(folder / name), "--model", device="cpu")
        for name in ("small", "large")
    )
    cascade = TokenCascade(small, large, "token-v3", 0.2, 5)
    prompts = [small.tokenizer(record["prompt"])["input_ids"] for record in RECORDS]
    for row, prompt in zip(written.columns.to_pylist(), prompts, strict=True):
        answer = cascade.answer(prompt, NEW_TOKENS)
        assert row["prompt_tokens"] == len(prompt)
        for name in ("text", "token_ids", *CASCADE_COUNTS):
            assert row[name] == getattr(answer, name)
    assert written.metadata["kind"] == "token-cascade"
    described = written.metadata["token_cascade"]
    assert (described["rule"], described["alpha"], described["gamma"]) == ("token-v3", 0.2, 5)
    assert described["small"] == json.loads(json.dumps(small.identity))
    assert described["large"] == json.loads(json.dumps(large.identity))
    assert run(folder, folder / "cascade.parquet") is not None
    said = capsys.readouterr().out
    total = int(written.numbers("output_tokens").sum())
    assert f"of {total:,} tokens" in said
    assert "flip rate: 0 of" in said
    assert "(float32)" in said


def test_batches_workers_and_kills_change_nothing(folder, written, tmp_path, monkeypatch):
    def content(predictions):
        return predictions.columns.drop_columns(["seconds"])

    assert content(run(folder, tmp_path / "1.parquet", batch_size=2)) == content(written)
    shared = tmp_path / "2.parquet"
    assert run(folder, shared, batch_size=2, worker=1, num_workers=2) is None
    assert content(run(folder, shared, batch_size=2, num_workers=2)) == content(written)

    create, calls = files.create_exclusive, []

    def killed(path, *rest, **options):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return create(path, *rest, **options)

    resumed = tmp_path / "3.parquet"
    monkeypatch.setattr(files, "create_exclusive", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, resumed, batch_size=2)
    monkeypatch.undo()
    assert list((tmp_path / "3.parquet.parts").glob("0*.parquet"))
    with pytest.raises(Exception, match=r"token_cascade.alpha"):
        run(folder, resumed, batch_size=2, alpha=0.3)
    assert content(run(folder, resumed, batch_size=2)) == content(written)


@pytest.mark.slow
def test_eval_draws_one_point(folder, written, tmp_path, capsys):
    names = ("small", "large", "cascade")
    small, large, both = (str(folder / f"{name}.parquet") for name in names)
    out = tmp_path / "report"
    args = ["eval", "--small", small, "--large", large, "--out", str(out)]
    assert main([*args, "--token-cascade", f"both={both}"]) == 0
    assert "Token cascade both, token-v3 alpha=0.2 gamma=5" in capsys.readouterr().out
    (row,) = csv.DictReader((out / "token_cascades.csv").read_text().splitlines())
    assert float(row["quality"]) == pytest.approx(written.numbers("quality").mean())
    assert json.loads((out / "summary.json").read_text())["token_cascades"][0]["label"] == "both"
    assert "Token cascades" in (out / "index.html").read_text()
    assert "both, token-v3" in (out / "cost.svg").read_text()


def test_costs_count_what_was_computed(folder, written):
    alone = [read_predictions(str(folder / f"{name}.parquet")) for name in ("small", "large")]
    file = str(folder / "cascade.parquet")
    (point,) = read_token_cascades([f"both={file}"], alone[1], (), is_split=False)
    tokens = written.numbers("output_tokens").sum()
    assert (point.label, point.rule) == ("both", "token-v3 alpha=0.2 gamma=5")
    assert point.large_share == written.numbers("num_large_tokens").sum() / tokens
    drafted = written.numbers("num_drafted").sum()
    assert point.accepted_share == written.numbers("num_accepted").sum() / drafted
    computed = [written.numbers(f"num_{name}_computed") for name in ("small", "large")]
    sizes = [2.0 * model.num_parameters for model in alone]
    whole = sum(size * each.mean() for size, each in zip(sizes, computed, strict=True))
    assert point.flops_per_example == pytest.approx(whole)
    prompts = written.numbers("prompt_tokens")
    answers = sum(size * (each - prompts).sum() for size, each in zip(sizes, computed, strict=True))
    assert point.flops_per_token == pytest.approx(answers / tokens)
    # Of a split, the test examples alone count; without one, the examples must be the same.
    part = alone[1].take(np.array([1, 4]))
    (point,) = read_token_cascades([file], part, (), is_split=True)
    assert point.quality == pytest.approx(written.numbers("quality")[[1, 4]].mean())
    with pytest.raises(IdentityError):
        read_token_cascades([file], part, (), is_split=False)


def test_eval_refuses_a_token_cascade_as_a_model(folder, written, tmp_path, capsys):
    names = ("small", "large", "cascade")
    small, large, both = (str(folder / f"{name}.parquet") for name in names)
    for flag, file, words in (
        ("--small", "cascade", ["--small", both, "--large", large]),
        ("--large", "cascade", ["--small", small, "--large", both]),
        (
            "--token-cascade",
            "small",
            ["--small", small, "--large", large, "--token-cascade", small],
        ),
    ):
        assert main(["eval", *words, "--out", str(tmp_path / "report")]) == 2
        error = capsys.readouterr().err
        assert f"{flag} {file}.parquet" in error
    assert not (tmp_path / "report").exists()


def test_the_command_line_refuses_a_pair_by_name(folder, tmp_path, capsys):
    other = tmp_path / "other"
    save_pair(other, torch.float32)
    path = other / "large" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, 9]}))
    words = [
        "predict", "--model", str(folder / "small"), "--large", str(other / "large"),
        "--token-rule", "spec", "--data", str(folder / "data.jsonl"),
        "--out", str(tmp_path / "x.parquet"), "--device", "cpu",
    ]  # fmt: skip
    assert main(words) == 3
    error = capsys.readouterr().err
    assert all(part in error for part in ("--large", "[2, 9]", "[2]", "eos_token_id"))


def config(**options):
    return PredictConfig(model="s", data=("d",), out="o.parquet", **options)


def test_the_numbers_of_a_rule_have_defaults():
    names = get_args(TokenRuleName)
    assert names == tuple(TOKEN_RULES)
    assert get_type_hints(PredictConfig)["token_rule"] == TokenRuleName | None
    assert rule_flags(config()) is None
    for rule, number, gamma in (
        ("spec", None, 5), ("opt", 0.2, 5), ("chow", 0.2, None), ("rsd", 0.01, 5),
    ):  # fmt: skip
        flags = rule_flags(config(large="l", token_rule=rule))
        assert (flags.setting, flags.gamma) == (number, gamma)
    flags = rule_flags(config(large="l", token_rule="margin", threshold=0.0))
    assert flags.fields == {"rule": "margin", "threshold": 0.0}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"large": "l"}, "--token-rule"),
        ({"token_rule": "spec"}, "--large"),
        ({"gamma": 3}, "--large and --token-rule"),
        ({"large": "l", "token_rule": "spec", "alpha": 0.1}, "--alpha 0.1"),
        ({"large": "l", "token_rule": "entropy"}, "--threshold"),
        ({"large": "l", "token_rule": "entropy", "threshold": 1.0, "p_th": 0.1}, "--p-th 0.1"),
        ({"large": "l", "token_rule": "entropy", "threshold": -1.0}, "--threshold -1"),
        ({"large": "l", "token_rule": "chow", "gamma": 2}, "--gamma 2"),
        ({"large": "l", "token_rule": "spec", "gamma": 0}, "--gamma 0"),
        ({"large": "l", "token_rule": "diff", "alpha": 1.2}, "--alpha 1.2"),
        ({"large": "l", "token_rule": "diff", "alpha": float("nan")}, "--alpha nan"),
        ({"large": "l", "token_rule": "diff", "hidden": -1}, "--hidden -1"),
    ],
)
def test_flags_without_a_meaning_are_refused(options, named):
    with pytest.raises(UsageError) as caught:
        rule_flags(config(**options))
    assert named in str(caught.value)
