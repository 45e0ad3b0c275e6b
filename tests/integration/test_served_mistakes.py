"""Mistakes with a served teacher: found before the capture, in one line, without secrets."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.captures import served_config, words_for
from helpers.model_server import ModelServer, serving
from helpers.tiny import save_tiny, tiny_tokenizer
from transformers import AutoModelForCausalLM

from caskd.cli.main import main
from caskd.precompute import precompute
from caskd.store.errors import IdentityError, TeacherError, UsageError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def model(teacher: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(teacher).eval()


@pytest.mark.slow
def test_the_token_stays_secret(
    teacher: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with serving(model, token="s3cret-token") as server:
        config = served_config(teacher, tmp_path, server.url)
        monkeypatch.setenv("CASKD_SERVER_TOKEN", "wr0ng-token")
        assert main(words_for(config)) == 1
        error = capsys.readouterr().err
        assert "CASKD_SERVER_TOKEN" in error
        assert "wr0ng" not in error
        monkeypatch.setenv("CASKD_SERVER_TOKEN", "s3cret-token")
        assert main(words_for(config)) == 0
    for root, _, files in os.walk(tmp_path):
        for file in files:
            assert b"s3cret" not in Path(root, file).read_bytes()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"url": ()}, r"--backend server: no URL.*--url"),
        ({"sample": 5, "top_k": None}, r"--sample.*omit --sample"),
        ({"deterministic": True}, r"--deterministic.*omit --deterministic"),
        ({"dtype": "float32"}, r"--dtype"),
        ({"device": "cpu"}, r"--device"),
        ({"backend": "transformers"}, r"--url: was given with --backend transformers"),
        ({"url": ("http://me:pw@host/v1",)}, r"CASKD_SERVER_TOKEN"),
        ({"url": ("localhost:8000",)}, r"http://"),
        ({"served_model": "other"}, r"serves tiny.*--served-model other.*--served-model tiny"),
        ({"top_k": 40}, r"--top-k 40.*--max-logprobs 40"),
        ({"max_length": 60}, r"--max-length 60.*takes 59"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_the_capture(
    teacher: Path, model: Any, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with serving(model, max_logprobs=32, max_model_len=60) as server:
        config = served_config(teacher, tmp_path, **{"url": (server.url,), **changes})
        with pytest.raises(UsageError, match=problem) as error:
            precompute(config)
    assert "pw" not in str(error.value)
    assert "\n" not in str(error.value)


def test_another_tokenizer_is_refused(teacher: Path, model: Any, tmp_path: Path) -> None:
    reversed_alphabet = "zyxwvutsrqponmlkjihgfedcba0123456789 .,:+-=?>\n"
    with (
        serving(model, tokenizer=tiny_tokenizer(reversed_alphabet)) as server,
        pytest.raises(IdentityError, match=r"its tokenizer gives .*--teacher"),
    ):
        precompute(served_config(teacher, tmp_path, server.url))


def test_a_server_without_prompt_log_probabilities_is_refused(
    teacher: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelServer, "vllm", lambda self, body, fault: {"choices": [{"text": "x"}]})
    with serving(model) as server, pytest.raises(TeacherError, match="no log-probabilities"):
        precompute(served_config(teacher, tmp_path, server.url))


def test_plan_probes_a_server(
    teacher: Path, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(model) as server:
        words = words_for(served_config(teacher, tmp_path, server.url))[1:]
        assert main(["plan", *words, "--probe", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["forecast"]["num_rows"] > 0
    assert facts["identity"]["capture"]["engine"] == "server"
