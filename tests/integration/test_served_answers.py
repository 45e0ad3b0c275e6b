"""`caskd predict --backend server`: answers equal those of this process, through every fault."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.model_server import first_times, serving
from helpers.tiny import ragged_records, save_tiny, tiny_tokenizer, write_jsonl
from transformers import AutoModelForCausalLM

from caskd.cli.main import main
from caskd.eval.answers import read_predictions
from caskd.models.engines import http_client

RECORDS = ragged_records(24)
NEW_TOKENS = 8


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", seed=4, tie=False, layers=1)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", RECORDS)


@pytest.fixture(scope="module")
def local(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of transformers."""
    out = tmp_path_factory.mktemp("local") / "local.parquet"
    assert main(["predict", "--model", str(folder), "--device", "cpu", *words(data, out)]) == 0
    return out


def words(data: Path, out: Path) -> list[str]:
    return [
        *("--data", str(data), "--out", str(out), "--max-new-tokens", str(NEW_TOKENS)),
        *("--task-metric", "chrf", "--batch-size", "5"),
    ]


def asked(data: Path, out: Path, *urls: str) -> list[str]:
    named = [word for url in urls for word in ("--url", url)]
    return ["predict", "--backend", "server", *named, *words(data, out)]


def texts(file: Path) -> list[str]:
    return read_predictions(str(file)).strings("text")


def served(model: Any, **options: Any) -> Any:
    return serving(model, tokenizer=tiny_tokenizer(), **options)


@pytest.mark.parametrize("api", ["completions", "chat", "ids"])
def test_answers_equal_those_of_this_process(
    model: Any, folder: Path, data: Path, local: Path, tmp_path: Path, api: str
) -> None:
    flags = ["--model", str(folder)] if api == "ids" else ["--api", api]
    with served(model) as one, served(model) as two:
        assert main([*asked(data, tmp_path / "a.parquet", one.url + "/v1", two.url), *flags]) == 0
        assert min(len(one.asked), len(two.asked)) > len(RECORDS) // 4
    here, there = read_predictions(str(local)), read_predictions(str(tmp_path / "a.parquet"))
    for name in ("example_id", "text", "reference", "question_digest"):
        assert here.strings(name) == there.strings(name)
    for name in ("quality", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(here.numbers(name), there.numbers(name))
    for name in ("token_logprobs", "token_margins"):
        pairs = (file.columns.column(name).to_pylist() for file in (here, there))
        for ours, theirs in zip(*pairs, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert there.columns.column("token_ids").null_count == len(RECORDS)
    assert set(there.strings("finish_reason")) <= {"stop", "length"}
    same = here.strings("prompt_digest") == there.strings("prompt_digest")
    assert same == (api == "ids")
    assert there.num_parameters == (here.num_parameters if api == "ids" else None)
    metadata = json.dumps(dict(there.metadata))
    assert "127.0.0.1" not in metadata
    assert str(folder) not in metadata


def test_messages_are_sent_as_they_are(model: Any, tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "ab"}, {"role": "user", "content": "cd"},
        {"role": "assistant", "content": "ef"},
    ]  # fmt: skip
    data = write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}] * 2)
    with served(model) as server:
        out = tmp_path / "a.parquet"
        base = asked(data, out, server.url)
        assert main(base) == 2  # no template without --model
        arguments = ["--template-arguments", '{"enable_thinking": false}']
        assert main([*base, "--api", "chat", *arguments]) == 0
        assert server.asked[-1]["messages"] == turns[:2]
        assert server.asked[-1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_stop_texts_end_answers_here_too(
    model: Any, folder: Path, data: Path, tmp_path: Path
) -> None:
    """More stop texts than a request may have are applied to the answer."""
    stops = [word for text in ["zz", "yy", "xx", "ww", "e", "a"] for word in ("--stop", text)]
    local, out = tmp_path / "l.parquet", tmp_path / "s.parquet"
    here = ["predict", "--model", str(folder), "--device", "cpu", *words(data, local), *stops]
    assert main(here) == 0
    with served(model) as server:
        assert main([*asked(data, out, server.url), *stops]) == 0
        assert all(len(body.get("stop", [])) <= 4 for body in server.asked)
    ours, theirs = read_predictions(str(local)), read_predictions(str(out))
    assert ours.strings("text") == theirs.strings("text")
    lengths = [
        [len(row) for row in file.columns.column("token_logprobs").to_pylist()]
        for file in (ours, theirs)
    ]
    assert lengths[0] == lengths[1]
    assert min(lengths[0]) < NEW_TOKENS


@pytest.mark.parametrize("given", ["ignored", "refused"])
def test_without_log_probabilities_answers_have_a_quality_alone(
    model: Any, data: Path, local: Path, tmp_path: Path, given: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "large.parquet"
    with served(model, gives_logprobs=given, limit_name="max_completion_tokens") as server:
        assert main([*asked(data, out, server.url), "--api", "chat"]) == 0
    assert "token_logprobs" in capsys.readouterr().out
    assert texts(out) == texts(local)
    assert read_predictions(str(out)).columns.column("token_logprobs").null_count == len(RECORDS)


@pytest.mark.slow
def test_answers_without_log_probabilities_serve_as_large(
    model: Any, data: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "large.parquet"
    with served(model, gives_logprobs="ignored") as server:
        assert main([*asked(data, out, server.url), "--api", "chat"]) == 0
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"tiny": {"prompt": 1.0, "output": 4.0}}))
    report = tmp_path / "report"
    base = ["eval", "--large", str(out), "--out", str(report)]
    assert main([*base, "--small", str(local), "--prices", str(prices)]) == 0
    summary = json.loads((report / "summary.json").read_text())
    assert summary["large"]["num_parameters"] is None
    assert {"average", "entropy"} <= summary["smalls"][0]["rules"].keys()
    assert any("parameters of tiny is not known" in line for line in summary["warnings"])
    header, first = (report / "curve.csv").read_text().splitlines()[:2]
    assert "flops" not in header
    assert "money_per_example" in header
    assert "nan" not in first
    capsys.readouterr()
    assert main([*base, "--small", str(out)]) == 2
    error = capsys.readouterr().err
    assert "token_logprobs" in error
    assert "prompt-router" in error


def test_refused_empty_and_cut_answers_are_counted(
    model: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.parquet"
    faults = {2: "filtered", 3: "blocked", 4: "refused", 5: "empty"}
    with served(model) as server:
        server.fault = lambda n, body: faults.get(n)
        flags = ["--api", "chat", "--server-concurrency", "1"]
        assert main([*asked(data, out, server.url), *flags]) == 0
    found = read_predictions(str(out))
    assert found.num_finished_by("content_filter") == 3
    assert found.num_empty() == 4
    printed = capsys.readouterr().out
    assert "3 answers refused" in printed
    assert "4 of them empty" in printed


@pytest.mark.parametrize("fault", ["500", "429", "kill", "truncated"])
def test_what_may_be_asked_again_is(
    model: Any, data: Path, local: Path, tmp_path: Path, fault: str
) -> None:
    out = tmp_path / "a.parquet"
    with served(model) as server:
        server.fault = first_times(3, fault, after=6)
        assert main(asked(data, out, server.url)) == 0
    assert read_predictions(str(out)).strings("text") == read_predictions(str(local)).strings(
        "text"
    )


@pytest.mark.parametrize(
    ("fault", "code", "problem"),
    [
        ("400", 1, "status 400"),
        ("302", 1, "no redirect"),
        ("unfinished", 1, "finish_reason is None"),
        ("no_usage", 1, "lacks a field"),
        ("other_model", 3, "answers as model 'another'"),
    ],
)
def test_a_wrong_answer_ends_the_run_and_a_rerun_completes_it(
    model: Any, data: Path, local: Path, tmp_path: Path, fault: str, code: int, problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "a.parquet"
    with served(model) as server:
        server.fault = first_times(1, fault, after=15)
        line = [*asked(data, out, server.url), "--server-concurrency", "1"]
        assert main(line) == code
        assert problem in capsys.readouterr().err
        before = len(server.asked)
        assert main(line) == 0
        assert len(server.asked) - before < len(RECORDS)  # finished parts are not asked again
    assert read_predictions(str(out)).strings("text") == read_predictions(str(local)).strings(
        "text"
    )


def test_workers_share_a_file_and_another_request_is_refused(
    model: Any, data: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.parquet"
    with served(model) as server:
        line = asked(data, out, server.url)
        half = [*line, "--num-workers", "2", "--worker"]
        assert main([*half, "1"]) == 0
        assert not out.exists()
        server.gives_logprobs = "ignored"
        assert main([*half, "0"]) == 3
        assert "log_probs" in capsys.readouterr().err
        server.gives_logprobs = True
        assert main([*half, "0"]) == 0
        assert main([*line, "--api", "chat"]) == 3
        server.name = "newer"
        assert main(line) == 3
        assert "'newer' now" in capsys.readouterr().err
    assert read_predictions(str(out)).strings("text") == read_predictions(str(local)).strings(
        "text"
    )


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--url", "http://h", "--hidden", "-1"], "--hidden"),
        (["--url", "http://h", "--device", "cpu"], "--device"),
        (["--url", "http://h", "--api", "chat", "--chat-template", "x"], "--chat-template"),
        (["--url", "http://h", "--server-concurrency", "0"], "--server-concurrency 0"),
        ([], "no URL"),
    ],
)
def test_flags_that_a_server_decides_are_refused(
    data: Path, tmp_path: Path, flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*asked(data, tmp_path / "a.parquet"), *flags]) == 2
    assert problem in capsys.readouterr().err


def test_a_missing_model_or_a_url_without_the_backend_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", *words(data, tmp_path / "a.parquet")]) == 2
    assert "--model: missing" in capsys.readouterr().err
    flags = ["--model", "m", "--url", "http://h"]
    assert main(["predict", *flags, *words(data, tmp_path / "a.parquet")]) == 2
    assert "--backend server" in capsys.readouterr().err


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_generation_config_of_the_server_changes_no_answer(
    model: Any, data: Path, local: Path, tmp_path: Path, api: str, kind: str
) -> None:
    """As vLLM and SGLang do, the server takes what a request lacks from the model's defaults."""
    out = tmp_path / "a.parquet"
    with served(model, kind=kind, defaults={"repetition_penalty": 1.3}) as server:
        assert main([*asked(data, out, server.url), "--api", api, "--limit", "8"]) == 0
        assert {"top_p": 1.0, "top_k": -1, "min_p": 0.0}.items() <= server.asked[-1].items()
    assert texts(out) == texts(local)[:8]
    found = read_predictions(str(out)).metadata["decoding"]
    assert found["server"] == kind
    assert "repetition_penalty" in found["neutral_settings"]


def test_settings_that_a_server_keeps_are_named(
    model: Any, data: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.parquet"
    with served(model, kind="other", defaults={"repetition_penalty": 1.3}) as server:
        assert main([*asked(data, out, server.url), "--limit", "8"]) == 0
        assert "top_k" not in server.asked[-1]
        assert server.asked[-1]["top_p"] == 1.0
    assert texts(out) != texts(local)[:8]
    assert "neither vLLM nor SGLang; top_k, min_p, repetition_penalty" in capsys.readouterr().out
    assert read_predictions(str(out)).metadata["decoding"]["server"] is None
    out = tmp_path / "b.parquet"
    with served(model, refuses=("min_p", "top_p"), gives_logprobs="refused") as server:
        assert main([*asked(data, out, server.url), "--limit", "2"]) == 0
        assert {"top_k", "repetition_penalty"} <= server.asked[-1].keys()
    said = capsys.readouterr().out
    assert "refused top_p, min_p;" in said
    assert not read_predictions(str(out)).metadata["decoding"]["log_probs"]


def test_a_model_with_a_call_token_is_not_asked_of_a_server(
    model: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "call_token_id": 49}))
    with served(model) as server:
        line = [*asked(data, tmp_path / "a.parquet", server.url), "--model", str(folder)]
        assert main(line) == 2
        assert not server.asked
    assert "call_token_id" in capsys.readouterr().err


def test_a_limit_of_the_servers_own_is_named(
    model: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(model, most_tokens=3) as server:
        assert main([*asked(data, tmp_path / "a.parquet", server.url), "--limit", "4"]) == 0
    assert f"fewer than {NEW_TOKENS} tokens: the server has a limit" in capsys.readouterr().out
