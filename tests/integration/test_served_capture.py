"""Captures from a server: equal to those of the same model in this process, through every fault."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.captures import RECORDS, config_for, sealed_files, served_config, words_for
from helpers.model_server import FaultOf, first_times, serving
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from caskd.cli.main import main
from caskd.models.engines import http_client
from caskd.precompute import precompute
from caskd.precompute.planning import check_job, plan_job
from caskd.precompute.teacher import find_teacher
from caskd.store import TeacherStore, verify_store
from caskd.store.errors import FailedShardsError, IdentityError
from caskd.store.write import StoreWriter

KINDS = ["vllm", "sglang"]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(http_client, "ATTEMPTS", 4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def model(teacher: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(teacher).eval()


@pytest.fixture(scope="module")
def plain(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> TeacherStore:
    """The capture of the same model by transformers."""
    return precompute(config_for(teacher, tmp_path_factory.mktemp("plain")))


def check_equal(store: TeacherStore, plain: TeacherStore) -> None:
    """Rows equal those of logits, to the rounding of float32."""
    assert verify_store(store.root, full=True).ok
    a, b = store.read(range(len(store))), plain.read(range(len(plain)))
    total = b.column("logsumexp")
    close = {"rtol": 0, "atol": 2e-4}
    np.testing.assert_array_equal(a.column("topk_ids"), b.column("topk_ids"))
    np.testing.assert_array_equal(a.column("argmax"), b.column("argmax"))
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.column("label_rank"), np.minimum(b.column("label_rank"), 8))
    np.testing.assert_allclose(a.column("label_logit"), b.column("label_logit") - total, **close)
    np.testing.assert_allclose(
        a.column("topk_logits"), b.column("topk_logits") - total[:, None], **close
    )
    np.testing.assert_allclose(a.column("tail_mass"), b.column("tail_mass"), rtol=0, atol=5e-5)
    assert not a.column("logsumexp").any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_served_capture_equals_one_of_this_process(
    teacher: Path, model: Any, plain: TeacherStore, tmp_path: Path, kind: str
) -> None:
    with serving(model, kind=kind, tokenizer=tiny_tokenizer()) as server:
        words = words_for(served_config(teacher, tmp_path, server.url + "/v1"))
        assert main(words) == 0
    store = TeacherStore.open(tmp_path / "store")
    check_equal(store, plain)
    identity = store.spec.identity
    assert identity["capture"]["engine"] == "server"
    assert (
        identity["capture"]["engine_version"] == {"vllm": "vllm 0.32", "sglang": "sglang 0.5"}[kind]
    )
    assert identity["teacher"]["weights_digest"] is not None
    ranks = store.read(range(len(store))).column("label_rank")
    assert store.seal["counts"]["capped_rows"] == (ranks == 8).sum() > 0
    assert store.seal["counts"]["clamped_rows"] == 0
    text = b"".join(sealed_files(str(store.root)).values())
    assert b"127.0.0.1" not in text


@pytest.mark.slow
def test_weights_are_not_needed(
    teacher: Path, model: Any, plain: TeacherStore, tmp_path: Path
) -> None:
    folder = tmp_path / "no-weights"
    folder.mkdir()
    for file in teacher.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    with serving(model) as server:
        store = precompute(served_config(folder, tmp_path / "run", server.url))
    check_equal(store, plain)
    assert store.spec.identity["teacher"]["weights_digest"] is None
    card = (store.root / "README.md").read_text()
    assert "fingerprint" in card
    assert "attention None" not in card


def test_urls_share_the_examples_and_keep_to_their_limit(
    teacher: Path, model: Any, plain: TeacherStore, tmp_path: Path
) -> None:
    with serving(model) as one, serving(model) as two:
        store = precompute(
            served_config(
                teacher, tmp_path, one.url, two.url, server_concurrency=2, token_budget=2000
            )
        )
        counts = [len(server.asked) for server in (one, two)]
        # The fingerprint of a plan asks all prompts of the first URL at once.
        assert min(counts) > len(RECORDS) // 4
        assert two.most_busy <= 2
    check_equal(store, plain)


def every_tenth_once(fault: str) -> FaultOf:
    """Behind the plan's fingerprints, every tenth prompt meets the fault when it is first asked."""
    seen: set[tuple[int, ...]] = set()

    def fault_of(n: int, body: dict[str, Any]) -> str | None:
        tokens = tuple(body.get("prompt") or body["input_ids"])
        if n < 70 or tokens in seen:
            return None
        seen.add(tokens)
        return fault if len(seen) % 10 == 3 else None

    return fault_of


# The client asks again by status before it knows the kind of server: one kind has the statuses.
@pytest.mark.parametrize(
    ("kind", "fault"),
    [*(("vllm", fault) for fault in ("500", "429", "kill", "truncated")),
     ("sglang", "kill"), ("sglang", "truncated")],
)  # fmt: skip
def test_what_may_be_asked_twice_is_asked_again(
    teacher: Path, model: Any, plain: TeacherStore, tmp_path: Path, kind: str, fault: str
) -> None:
    with serving(model, kind=kind) as server:
        server.fault = every_tenth_once(fault)
        store = precompute(served_config(teacher, tmp_path, server.url, server_concurrency=1))
    check_equal(store, plain)


@pytest.mark.slow
def test_a_hanging_request_is_given_up_and_asked_again(
    teacher: Path, model: Any, plain: TeacherStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "READ_SECONDS", 0.5)
    with serving(model) as server:
        server.fault = first_times(1, "hang", after=110)
        store = precompute(served_config(teacher, tmp_path, server.url))
    check_equal(store, plain)


@pytest.mark.parametrize(
    ("kind", "fault", "problem"),
    [
        ("vllm", "wrong_ids", "lacks its own token"),
        ("sglang", "wrong_ids", "other token ids"),
        ("vllm", "foreign_id", "names id 999999"),
        ("vllm", "400", "status 400"),
        ("vllm", "302", "no redirect"),
        ("vllm", "500", "failed 4 times"),
    ],
)
def test_a_wrong_answer_fails_its_shard_and_a_rerun_completes_the_store(
    teacher: Path,
    model: Any,
    plain: TeacherStore,
    tmp_path: Path,
    kind: str,
    fault: str,
    problem: str,
) -> None:
    with serving(model, kind=kind) as server:
        config = served_config(teacher, tmp_path, server.url, server_concurrency=1)
        marked: list[list[int]] = []

        def fault_of(n: int, body: dict[str, Any]) -> str | None:
            tokens = body.get("prompt") or body["input_ids"]
            if n > 110 and not marked:
                marked.append(tokens)
            return fault if tokens in marked else None

        server.fault = fault_of
        with pytest.raises(FailedShardsError, match=problem) as failed:
            precompute(config)
        assert "\n" not in str(failed.value)
        server.fault = lambda n, body: None
        store = precompute(config)
    check_equal(store, plain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_a_status_of_its_example_alone(
    teacher: Path, model: Any, plain: TeacherStore, tmp_path: Path, kind: str
) -> None:
    spoilt = plain.read([5]).token_ids.tolist()

    def fault_of(n: int, body: dict[str, Any]) -> str | None:
        return "nan" if (body.get("prompt") or body["input_ids"]) == spoilt else None

    with serving(model, kind=kind) as server:
        server.fault = fault_of
        store = precompute(served_config(teacher, tmp_path, server.url, max_non_finite=1.0))
    assert store.seal["statuses"] == {"ok": len(RECORDS) - 1, "non_finite": 1}
    assert verify_store(store.root, full=True).ok
    assert not store.read([5]).column("num_kept").any()
    rest = [n for n in range(len(store)) if n != 5]
    np.testing.assert_array_equal(
        store.read(rest).column("topk_ids"), plain.read(rest).column("topk_ids")
    )


def test_a_clamped_label_has_probability_zero(teacher: Path, model: Any, tmp_path: Path) -> None:
    with serving(model) as server:
        server.fault = lambda n, body: "clamp" if n == 120 else None
        store = precompute(served_config(teacher, tmp_path, server.url))
    assert store.seal["counts"]["clamped_rows"] == 1
    label = store.read(range(len(store))).column("label_logit")
    assert np.isfinite(label).all()
    assert (np.exp(label) == 0).sum() == 1
    assert verify_store(store.root, full=True).ok


@pytest.mark.slow
def test_another_model_behind_the_url_ends_the_capture(
    teacher: Path, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(model) as server:
        config = served_config(teacher, tmp_path, server.url, server_concurrency=2)
        assert main(["plan", *words_for(config)[1:]]) == 0

        def swap(n: int, body: dict[str, Any]) -> str | None:
            if n == 200:  # behind the fingerprints, amid the examples
                server.model = tiny_model(tiny_tokenizer(), seed=1)
                return "kill"
            return None

        server.fault = swap
        assert main(words_for(config)) == 3
        error = capsys.readouterr().err
        assert "teacher.fingerprint" in error
        assert "--store" in error
        server.fault = lambda n, body: None
        assert main(words_for(config)) == 3  # at its start
        server.model = model
        assert main(words_for(config)) == 0


def test_a_second_url_with_another_model_is_refused(
    teacher: Path, model: Any, tmp_path: Path
) -> None:
    with serving(model) as one, serving(tiny_model(tiny_tokenizer(), seed=1)) as two:
        with pytest.raises(IdentityError, match=rf"{two.url}.*teacher\.fingerprint"):
            precompute(served_config(teacher, tmp_path, one.url, two.url))
        assert not (tmp_path / "store").exists()


def test_a_lost_idle_connection_asks_for_the_fingerprint_again(
    teacher: Path, model: Any, tmp_path: Path
) -> None:
    with serving(model) as server:
        config = served_config(teacher, tmp_path, server.url)
        job = check_job(config)
        spec = plan_job(config, job)
        teacher_of_store = find_teacher(config).load(spec)
        examples = StoreWriter(config.store).shard(0).examples[:1]
        teacher_of_store.rows(examples)
        before = len(server.asked)
        teacher_of_store.rows(examples)
        assert len(server.asked) == before + 1
        server.drop_connections()
        server.model = tiny_model(tiny_tokenizer(), seed=1)
        with pytest.raises(IdentityError, match="another model"):
            teacher_of_store.rows(examples)
        teacher_of_store.close()
