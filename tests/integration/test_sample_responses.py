"""`caskd precompute --sample-responses`: the teacher's answers as a corpus for a capture."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.killed_answers import interrupt_parts
from helpers.model_server import first_times, serving
from helpers.tiny import ragged_records, save_tiny, tiny_tokenizer, write_jsonl
from transformers import AutoModelForCausalLM

from caskd.cli.main import main
from caskd.models.engines import http_client
from caskd.store import TeacherStore

NEW_TOKENS = 24
RECORDS = [{"prompt": record["prompt"], "task": record["task"]} for record in ragged_records(20)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which some answers end and others do not."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", seed=4, tie=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", RECORDS)


def line(teacher: Path | None, data: Path, out: Path, *flags: str) -> list[str]:
    named = ["--teacher", str(teacher)] if teacher else []
    limit = ["--max-new-tokens", str(NEW_TOKENS)]
    words = ["precompute", *named, "--data", str(data), "--sample-responses", str(out)]
    return [*words, *limit, *flags]


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text().splitlines()]


def served(teacher: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    return serving(model, tokenizer=tiny_tokenizer())


@pytest.mark.slow
def test_answers_are_a_corpus_of_which_unfinished_ones_are_left_out(
    teacher: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    assert main(line(teacher, data, out, "--device", "cpu")) == 0
    found = read(out)
    assert [record["prompt"] for record in found] == [record["prompt"] for record in RECORDS]
    unfinished = sum(not record["finished"] for record in found)
    assert 0 < unfinished < len(found)
    assert f"{unfinished} cut at --max-new-tokens" in capsys.readouterr().out
    capture = ["--teacher", str(teacher), "--data", str(out), "--top-k", "8", "--device", "cpu"]
    store = ["--store", str(tmp_path / "store")]
    assert main(["plan", *capture, *store]) == 0
    assert f"{unfinished} unfinished answers" in capsys.readouterr().out
    assert main(["precompute", *capture, *store]) == 0
    opened = TeacherStore.open(tmp_path / "store")
    assert opened.seal["statuses"]["unfinished"] == unfinished
    assert opened.spec.format_version == 2
    # A greedy teacher has chosen the tokens of its own answers, but for special ones, which the
    # text of an answer does not have.
    share = (opened.read(range(len(opened))).column("label_rank") == 0).mean()
    assert share > 0.8
    assert main(["store", "info", str(tmp_path / "store")]) == 0
    assert f"{share:.1%} are the teacher's argmax (label_rank 0)" in capsys.readouterr().out
    assert main(["precompute", *capture, *store, "--on-unfinished", "keep"]) == 3
    assert "text.on_unfinished" in capsys.readouterr().err
    kept = ["--store", str(tmp_path / "kept"), "--on-unfinished", "keep"]
    assert main(["precompute", *capture, *kept]) == 0
    opened = TeacherStore.open(tmp_path / "kept")
    end = tiny_tokenizer().eos_token_id
    for number, record in enumerate(found):
        ids = opened.read([number]).token_ids
        assert not len(ids) or (ids[-1] == end) == record["finished"]
    assert opened.spec.format_version == 2


@pytest.mark.slow
@pytest.mark.parametrize("heat", [(), ("--temperature", "1.3", "--seed", "7")])
def test_answers_depend_on_no_batch_worker_or_kill(
    teacher: Path, data: Path, tmp_path: Path, heat: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, alone, shared = (tmp_path / f"{name}.jsonl" for name in ("a", "b", "c"))
    flags = ("--device", "cpu", *heat)
    assert main(line(teacher, data, whole, *flags)) == 0
    assert main(line(teacher, data, alone, *flags, "--token-budget", "1")) == 0
    assert read(whole) == read(alone)
    small = (*flags, "--token-budget", "200")
    half = line(teacher, data, shared, *small, "--num-workers", "2", "--worker")
    assert main([*half, "1"]) == 0
    assert not shared.exists()
    left = interrupt_parts(monkeypatch, 2)
    assert main([*half, "0"]) == 130
    left[0] = 100
    assert main(line(teacher, data, shared, *small)) == 0
    assert left[0] > 90 + 1  # finished parts are not answered again
    assert read(shared) == read(whole)
    if heat:
        other = tmp_path / "d.jsonl"
        assert main(line(teacher, data, other, "--device", "cpu", *heat[:-1], "8")) == 0
        assert read(other) != read(whole)
        assert main(line(teacher, data, whole, "--device", "cpu", *heat[:-1], "8")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_server_answers_alike(
    teacher: Path, data: Path, tmp_path: Path, api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert main(line(teacher, data, here, "--device", "cpu")) == 0
    with served(teacher) as server:
        flags = ("--backend", "server", "--url", server.url, "--api", api)
        named = teacher if api == "completions" else None
        server.fault = first_times(2, "kill", after=3)
        assert main(line(named, data, there, *flags)) == 0
        # Which texts lack special tokens that were generated shows only here.
        written = [{k: v for k, v in one.items() if k != "text_differs"} for one in read(here)]
        assert any(one.get("text_differs") for one in read(here))
        assert read(there) == written
        server.fault = lambda n, body: "filtered" if n % 5 == 0 else None
        assert main(line(named, data, tmp_path / "f.jsonl", *flags)) == 0
        assert "4 refused" in capsys.readouterr().out
        empty = [r["finished"] for r in read(tmp_path / "f.jsonl") if not r["response"]]
        assert empty.count(False) >= 4
        drawn = [*line(named, data, tmp_path / "d.jsonl", *flags), "--temperature", "1"]
        server.fault = lambda n, body: None
        assert main(drawn) == 0
        seeds = {body["seed"] for body in server.asked[-len(RECORDS) :]}
        assert len(seeds) == len(RECORDS)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--store", "s"], "--store"),
        (["--top-k", "4"], "--top-k 4"),
        (["--max-length", "50"], "--max-length 50"),
        (["--encoding", "exact"], "--encoding exact"),
        (["--no-eos"], "--no-eos"),
        (["--on-bad-chat", "skip"], "--on-bad-chat skip"),
        (["--seed", "3"], "--temperature"),
        (["--temperature", "0"], "--temperature 0"),
        (["--executor", "ray"], "--executor ray"),
        (["--backend", "vllm", "--device", "cpu"], "--backend vllm and --device"),
        (["--backend", "server"], "--url"),
        (["--url", "http://localhost:1"], "--url"),
        (["--served-model", "m"], "--served-model"),
        (["--api", "chat"], "--api chat"),
        (["--tensor-parallel", "2"], "--tensor-parallel 2"),
        (["--backend", "server", "--url", "http://localhost:1", "--device", "cpu"], "--device"),
        (["--backend", "server", "--url", "http://localhost:1", "--api", "chat",
          "--train-template-tokens"], "--train-template-tokens"),
    ],
)  # fmt: skip
def test_flags_without_a_meaning_are_refused(
    teacher: Path, data: Path, tmp_path: Path, flags: list[str], problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(line(teacher, data, tmp_path / "a.jsonl", *flags)) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert "{" not in said


def test_a_capture_names_what_is_missing(
    teacher: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["precompute", "--teacher", str(teacher), "--data", str(data)]
    assert main(base) == 2
    assert "--store: missing" in capsys.readouterr().err
    assert main([*base, "--store", "s", "--temperature", "1"]) == 2
    assert "--sample-responses" in capsys.readouterr().err
