"""The doctor of servers: kind, limits, speed, and whether several URLs serve one model."""

import json
from typing import Any

import pytest
from helpers.model_server import serving
from helpers.tiny import tiny_model, tiny_tokenizer

from caskd.cli.main import main
from caskd.models.engines import http_client


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(tiny_tokenizer())


def findings(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", *words])
    return code, {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_is_described(model: Any, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(model, kind=kind, max_logprobs=40) as server:
        code, found = findings(["--url", server.url + "/v1/"], capsys)
    assert code == 0
    assert kind in found["server 0"]["found"]
    assert "257 tokens" in found["server 0"]["found"]
    assert found["server 0 top-k"]["verdict"] == "note"
    assert "gives 32 or more" in found["server 0 top-k"]["found"]
    assert "--max-logprobs 64" in found["server 0 top-k"]["fix"]
    assert "rows/s" in found["server 0 speed"]["found"]
    assert "480 fixed tokens" in found["server 0 fingerprint"]["found"]


@pytest.mark.slow
def test_urls_of_two_models_are_told_apart(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny_model(tiny_tokenizer(), seed=1)
    with serving(model) as one, serving(model) as two, serving(other) as three:
        code, found = findings(["--url", one.url, "--url", two.url, "--url", three.url], capsys)
    assert code == 1
    verdicts = [found[f"server {n} fingerprint"]["verdict"] for n in range(3)]
    assert verdicts == ["ok", "ok", "broken"]


def test_nothing_that_answers_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http_client, "ATTEMPTS", 2)
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.001)
    code, found = findings(["--url", "http://127.0.0.1:9"], capsys)
    assert code == 1
    assert "failed 2 times" in found["server 0"]["found"]
