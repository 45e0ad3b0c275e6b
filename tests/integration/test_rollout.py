"""`caskd rollout`: answers of two models as a corpus for a capture."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.killed_answers import interrupt_parts
from helpers.pairs import save_pair
from helpers.tiny import ragged_records, tiny_model, tiny_tokenizer, write_jsonl

from caskd.cli.main import main
from caskd.models.decoding import Sampling, TokenCascade, load_for_decoding
from caskd.store import TeacherStore

NEW_TOKENS = 10
P_TH = 0.1
RECORDS = [{"prompt": record["prompt"], "task": record["task"]} for record in ragged_records(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rollout")
    save_pair(root, torch.float32)
    write_jsonl(root / "data.jsonl", RECORDS)
    return root


def line(root: Path, out: Path, *flags: str) -> list[str]:
    models = ["--model", str(root / "small"), "--large", str(root / "large"), "--device", "cpu"]
    named = ["--data", str(root / "data.jsonl"), "--out", str(out)]
    return ["rollout", "--rule", "rsd", *models, *named, "--max-new-tokens", "10", *flags]


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text().splitlines()]


def own_answers(root: Path, name: str, out: Path, *flags: str) -> list[dict[str, Any]]:
    """Answers of one model alone."""
    words = ["--teacher", str(root / name), "--data", str(root / "data.jsonl"), "--device", "cpu"]
    limit = ["--max-new-tokens", str(NEW_TOKENS)]
    assert main(["precompute", *words, "--sample-responses", str(out), *limit, *flags]) == 0
    return read(out)


@pytest.mark.slow
@pytest.mark.parametrize("heat", [(), ("--temperature", "1.3", "--seed", "7")])
def test_p_th_0_is_the_teachers_corpus_and_above_1_the_students(
    folder: Path, tmp_path: Path, heat: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = {
        name: own_answers(folder, name, tmp_path / f"{name}.jsonl", *heat)
        for name in ("small", "large")
    }
    assert alone["small"] != alone["large"]
    for p_th, name in (("0", "large"), ("1.5", "small")):
        out = tmp_path / f"{p_th}.jsonl"
        assert main(line(folder, out, "--p-th", p_th, *heat)) == 0
        assert read(out) == alone[name]
        share = "100.0%" if name == "large" else "0.0%"
        assert f"({share})" in capsys.readouterr().out


@pytest.mark.slow
def test_traces_are_a_corpus_that_no_gamma_worker_or_kill_changes(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heat = ("--p-th", str(P_TH), "--temperature", "1", "--seed", "5")
    whole, shared = tmp_path / "whole.jsonl", tmp_path / "shared.jsonl"
    assert main(line(folder, whole, *heat)) == 0
    small, large = (
        load_for_decoding(str(folder / name), "--model", device="cpu")
        for name in ("small", "large")
    )
    cascade = TokenCascade(small, large, "rsd", P_TH, 1, Sampling(1.0, 5))
    prompts = [small.tokenizer(record["prompt"])["input_ids"] for record in RECORDS]
    answers = [cascade.answer(p, NEW_TOKENS, key=str(i)) for i, p in enumerate(prompts)]
    assert [record["response"] for record in read(whole)] == [one.text for one in answers]
    assert [record["finished"] for record in read(whole)] == [
        one.token_ids[-1] in small.stop_ids for one in answers
    ]
    chosen = sum(one.num_large_tokens for one in answers)
    total = sum(len(one.token_ids) for one in answers)
    assert 0 < chosen < total
    assert f"{chosen:,} of {total:,} tokens" in capsys.readouterr().out

    half = line(folder, shared, *heat, "--num-workers", "2", "--worker")
    assert main([*half, "1"]) == 0
    assert not shared.exists()
    left = interrupt_parts(monkeypatch, 1)
    assert main([*half, "0"]) == 130
    left[0] = 3  # of the four records of worker 0, the first is answered
    assert main([*half, "0"]) == 0
    assert read(shared) == read(whole)
    assert main(line(folder, whole, "--p-th", "0.2", *heat[2:])) == 3
    assert "rule.p_th is 0.1 there but 0.2 now" in capsys.readouterr().err

    capture = ["--teacher", str(folder / "large"), "--data", str(whole), "--device", "cpu"]
    store = tmp_path / "store"
    assert main(["precompute", *capture, "--top-k", "8", "--store", str(store)]) == 0
    opened = TeacherStore.open(store)
    assert opened.seal["statuses"].get("unfinished", 0) == sum(
        not record["finished"] for record in read(whole)
    )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--p-th", "-1"), "--p-th -1"),
        (("--gamma", "0"), "--gamma 0"),
        (("--seed", "3"), "--temperature"),
        (("--out", "x.txt"), ".jsonl"),
        (("--large", "/nowhere"), "--large /nowhere"),
    ],
)
def test_flags_without_a_meaning_stop_before_any_model(
    folder: Path, tmp_path: Path, flags: tuple[str, ...], named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = line(folder, tmp_path / "out.jsonl")
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    assert main(words) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_pair_without_one_vocabulary_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_tokenizer("abc")
    tiny_model(other).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    words = line(folder, tmp_path / "out.jsonl")
    words[words.index("--large") + 1] = str(tmp_path / "other")
    assert main(words) == 3
    assert "--large" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl.parts").exists()
