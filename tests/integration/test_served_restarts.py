"""Servers and workers that end amid a capture from a server: what is lost is time alone."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.captures import fork_caskd, outcome, served_config, words_for
from helpers.model_server import serving, wait_until
from helpers.tiny import save_tiny
from transformers import AutoModelForCausalLM

from caskd.models.engines import http_client
from caskd.precompute import precompute
from caskd.store import TeacherStore, verify_store

AMID = 110
"""Number of a scoring request behind the fingerprints of plan and worker."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def model(teacher: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(teacher).eval()


def equal_rows(a: TeacherStore, b: TeacherStore) -> bool:
    x, y = (store.read(range(len(store))) for store in (a, b))
    assert verify_store(a.root, full=True).ok
    return all(np.array_equal(x.column(name), y.column(name)) for name in a.row_fields)


@pytest.mark.slow
def test_a_server_that_restarts_costs_time_alone(
    teacher: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.1)
    with serving(model) as server:
        whole = precompute(served_config(teacher, tmp_path / "whole", server.url))
        asked = len(server.asked)

        def restart(n: int, body: dict[str, Any]) -> str | None:
            if n == asked + AMID:
                server.gone.set()
                server.drop_connections()
                threading.Timer(0.3, server.gone.clear).start()
            return None

        server.fault = restart
        torn = precompute(served_config(teacher, tmp_path / "torn", server.url))
        assert not server.gone.is_set()
    assert equal_rows(torn, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_worker_that_waits_for_an_answer_ends_at_once(
    teacher: Path, model: Any, tmp_path: Path, number: int, code: int
) -> None:
    with serving(model) as server:
        whole = precompute(served_config(teacher, tmp_path / "whole", server.url))
        asked = len(server.asked)
        hangs = threading.Event()

        def fault(n: int, body: dict[str, Any]) -> str | None:
            if n < asked + AMID:
                return None
            hangs.set()
            return "hang"

        server.fault = fault
        config = served_config(teacher, tmp_path / "torn", server.url)
        child = fork_caskd(words_for(config), tmp_path / "log")
        wait_until(hangs.is_set, seconds=120)
        os.kill(child, number)
        # It ends while the requests still hang: the server holds them for longer than that.
        assert outcome(child) == code, (tmp_path / "log").read_text()
        assert server.busy
        server.fault = lambda n, body: None
        assert equal_rows(precompute(config), whole)
