"""`caskd import distillkit`: the rows of the source, its order, restarts, and damaged sources."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import foreign
from helpers.records import write_jsonl
from helpers.tiny import save_tiny, tiny_tokenizer

from caskd.cli.main import main
from caskd.store import TeacherStore
from caskd.store.write import StoreWriter

TOKENS = foreign.examples(8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, tokenizer: Path) -> Callable[..., int]:
    """Run `caskd import FORMAT tmp_path/source` into tmp_path/store."""

    def call(*flags: str, source: str = "source", store: str = "store") -> int:
        options = ("--tokenizer", str(tokenizer), "--teacher-name", "T", "--shard-rows", "24")
        words = ("import", "distillkit", str(tmp_path / source), "--store", str(tmp_path / store))
        return main([*words, *options, *flags])

    return call


def by_tokens(store: TeacherStore) -> dict[tuple[int, ...], Any]:
    """Each example of a store as a batch, by its tokens."""
    batches = (store.read([index]) for index in range(len(store)))
    return {tuple(batch.token_ids.tolist()): batch for batch in batches}


def seal_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "seal.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["exact", "fitted2"])
def test_rows_are_those_of_the_source(
    tmp_path: Path, run: Callable[..., int], encoding: str
) -> None:
    foreign.write_distillkit(tmp_path / "source", [*map(foreign.distillkit_record, TOKENS)])
    assert run("--encoding", encoding) == 0
    assert main(["store", "verify", "--full", str(tmp_path / "store")]) == 0
    store = TeacherStore.open(tmp_path / "store")
    found = by_tokens(store)
    close = {"atol": 1e-6} if encoding == "exact" else {"atol": 2e-3}
    num_capped = 0
    for tokens in TOKENS:
        batch = found.pop(tuple(tokens.tolist()))
        exact = foreign.log_probs(np.append(tokens, 0))[:-1]  # of every token but the padding
        ids, values = foreign.top(exact, 6)
        assert batch.labels.tolist() == tokens[1:].tolist()
        assert batch.column("argmax").tolist() == ids[:, 0].tolist()
        np.testing.assert_array_equal(np.sort(batch.column("topk_ids")), np.sort(ids))
        total = np.exp(values.astype(np.float64)).sum(1)
        np.testing.assert_allclose(batch.column("tail_mass"), 1 - total, **close)
        inside = (ids == tokens[1:, None]).any(1)
        label = np.where(inside, exact[np.arange(len(exact)), tokens[1:]], -np.inf)
        np.testing.assert_allclose(np.exp(batch.column("label_logit")), np.exp(label), atol=2e-3)
        num_capped += int((~inside).sum())
    assert not found
    capture = store.spec.identity["capture"]
    assert (capture["imported_from"], capture["tail"]) == ("distillkit", "complement")
    assert (capture["label"], capture["logits_dtype"]) == ("within_topk", "float32")
    counts = seal_of(tmp_path / "store")["counts"]
    assert num_capped > 0
    assert (counts["capped_rows"], counts["pad_rows"]) == (num_capped, len(TOKENS))


@pytest.mark.slow
def test_the_order_of_the_files_does_not_matter(tmp_path: Path, run: Callable[..., int]) -> None:
    records = [*map(foreign.distillkit_record, TOKENS)]
    foreign.write_distillkit(tmp_path / "source", records)
    foreign.write_distillkit(tmp_path / "other", records[::-1], files=1)
    assert run() == run(source="other", store="again") == 0
    first, second = (TeacherStore.open(tmp_path / name) for name in ("store", "again"))
    assert first.digest == second.digest


@pytest.mark.slow
def test_a_stopped_import_goes_on(
    tmp_path: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign.write_distillkit(tmp_path / "source", [*map(foreign.distillkit_record, TOKENS)])
    assert run(store="whole") == 0
    commit, done = StoreWriter.commit, []

    def stops(*args: Any) -> bool:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(args)
        return commit(*args)

    monkeypatch.setattr(StoreWriter, "commit", stops)
    assert run() == 130
    store = TeacherStore.open(tmp_path / "store", allow_unsealed=True)
    assert store.num_committed_shards() == 1 < store.spec.num_shards
    assert len(list(tmp_path.iterdir())) == 3
    done.clear()
    monkeypatch.setattr(StoreWriter, "commit", commit)
    assert run() == 0
    assert seal_of(tmp_path / "store") == seal_of(tmp_path / "whole")
    assert run() == 0  # sealed: nothing is written


def test_missing_ranks_are_cut_and_counted(tmp_path: Path, run: Callable[..., int]) -> None:
    records = [*map(foreign.distillkit_record, TOKENS)]
    values = np.array(records[0]["compressed_logprobs"], np.uint8).view("<f4").copy()
    values[0, 2], values[1, 4:] = -np.inf, np.nan
    records[0]["compressed_logprobs"] = values.view(np.uint8).reshape(len(values), -1).tolist()
    foreign.write_distillkit(tmp_path / "source", records)
    assert run("--encoding", "exact") == 0
    batch = by_tokens(TeacherStore.open(tmp_path / "store"))[tuple(TOKENS[0].tolist())]
    assert batch.column("num_kept")[:3].tolist() == [5, 4, 6]
    ids, _ = foreign.top(foreign.log_probs(np.append(TOKENS[0], 0)), 6)
    assert batch.column("topk_ids")[0, :5].tolist() == np.delete(ids[0], 2).tolist()
    assert seal_of(tmp_path / "store")["counts"]["cut_rows"] == 2


@pytest.mark.slow
def test_the_pad_token_is_kept_only_as_eos(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [tokens[:-1] for tokens in TOKENS]
    records = [foreign.distillkit_record(tokens, pad=2) for tokens in texts]
    foreign.write_distillkit(tmp_path / "source", records)
    assert run("--pad-is-eos") == 2
    assert "id 0, its EOS 2" in capsys.readouterr().err
    both = tiny_tokenizer()
    both.pad_token = "</s>"
    both.save_pretrained(tmp_path / "both")
    for flags, dropped in (((), len(TOKENS)), (("--pad-is-eos",), None)):
        store = f"store{len(flags)}"
        assert run("--tokenizer", str(tmp_path / "both"), *flags, store=store) == 0
        opened = TeacherStore.open(tmp_path / store)
        assert seal_of(tmp_path / store)["counts"].get("pad_rows") == dropped
        assert opened.spec.num_rows == sum(map(len, texts)) - (len(TOKENS) if dropped else 0)
        assert opened.spec.identity["text"]["eos"] == (dropped is None)


def damaged(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record with one defect."""
    changes: dict[str, Any] = {
        "too few rows": {"compressed_logprobs": record["compressed_logprobs"][1:]},
        "short row": {"bytepacked_indices": [row[1:] for row in record["bytepacked_indices"]]},
        "no ids": {"input_ids": None},
        "null row": {"compressed_logprobs": [None, *record["compressed_logprobs"][1:]]},
        "foreign id": {"input_ids": [foreign.VOCAB_SIZE, *record["input_ids"][1:]]},
        "huge id": {"input_ids": [1 << 63, *record["input_ids"][1:]]},
    }
    return {**record, **changes[name]}


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("too few rows", "compressed_logprobs has"),
        ("short row", "bytes; compression_config.yaml means 5"),
        ("no ids", "input_ids or labels are missing"),
        ("null row", "compressed_logprobs has a missing row"),
        ("foreign id", "token id 50"),
        ("huge id", "input_ids hold 9223372036854775808"),
    ],
)
def test_damaged_records_are_one_line(
    tmp_path: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    name: str,
    fact: str,
) -> None:
    records = [*map(foreign.distillkit_record, TOKENS)]
    records[3] = damaged(name, records[3])
    foreign.write_distillkit(tmp_path / "source", records)
    assert run() == 2
    err = capsys.readouterr().err
    assert fact in err
    assert err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_other_sources_are_one_line(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    facts = []

    def refused(fact: str) -> None:
        assert run() == 2
        err = capsys.readouterr().err
        assert fact in err
        assert err.count("\n") == 1
        facts.append(fact)

    refused("no such file")
    source.mkdir()
    (source / "rows.pt").write_bytes(b"\x80\x02.")
    refused("pickle")
    (source / "data_0.parquet").write_bytes(b"PAR1 not really PAR1")
    os.mkfifo(source / "data_1.parquet")
    refused("no regular file")
    (source / "data_1.parquet").unlink()
    refused("no readable compression_config.yaml")
    foreign.write_distillkit(source, [], files=0)
    refused("record 0")
    pq.write_table(pa.table({"packed_indices": [1]}), source / "data_0.parquet")
    refused("legacy")
    pq.write_table(pa.table({"input_ids": [[1]]}), source / "data_0.parquet")
    refused("no column 'compressed_logprobs'")
    foreign.write_distillkit(source, [foreign.distillkit_record(TOKENS[0][:1])], files=1)
    refused("without a row")
    records = [foreign.distillkit_record(tokens) for tokens in TOKENS]
    for record in records:  # logits, not log-probabilities
        values = np.array(record["compressed_logprobs"], np.uint8).view("<f4") + 9
        record["compressed_logprobs"] = values.view(np.uint8).reshape(len(values), -1).tolist()
    foreign.write_distillkit(source, records)
    refused("no usable value")
    assert len(facts) == 9


def test_another_capture_is_not_continued(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    records = [*map(foreign.distillkit_record, TOKENS)]
    foreign.write_distillkit(tmp_path / "source", records)
    assert run() == 0
    assert run("--teacher-name", "U") == 3
    assert "teacher.name is T there, but U here" in capsys.readouterr().err
    foreign.write_distillkit(tmp_path / "source", records[1:], files=1)
    (tmp_path / "source" / "data_1.parquet").unlink()
    assert run() == 3
    assert "corpus.num_records" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.write_distillkit(tmp_path / "source", [*map(foreign.distillkit_record, TOKENS)])
    assert run("--dry-run") == 0
    assert f"{sum(map(len, TOKENS)) - len(TOKENS)} rows" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
def test_a_student_trains_from_an_imported_store_once_it_is_accepted(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.write_distillkit(tmp_path / "source", [*map(foreign.distillkit_record, TOKENS)])
    assert run() == 0
    student, store = str(save_tiny(tmp_path / "student")), str(tmp_path / "store")
    words = ["train", "--store", store, "--student", student, "--out", str(tmp_path / "run")]
    words += ["--steps", "2", "--global-batch-size", "4", "--micro-batch-size", "4"]
    capsys.readouterr()
    assert main(words) == 2
    assert "expected --accept-imported" in capsys.readouterr().err
    for option in (["--objective", "alm"], ["--delegate", "rho"], ["--delegate", "gap"]):
        assert main([*words, "--accept-imported", *option]) == 2
        assert "is within_topk" in capsys.readouterr().err, option
    assert main([*words, "--accept-imported"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
    recorded = [*(tmp_path / "run").glob("checkpoints/*/*.json")]
    assert any('"accept_imported": true' in path.read_text() for path in recorded)
    words = ["eval", "--student", student, "--out", str(tmp_path / "page"), "--next-token"]
    assert main([*words, store, "--accept-imported"]) == 2
    assert "capture.label is within_topk" in capsys.readouterr().err
    whole = [foreign.distillkit_record(tokens, k=foreign.VOCAB_SIZE) for tokens in TOKENS]
    size = {"k": foreign.VOCAB_SIZE, "exact_k": foreign.VOCAB_SIZE}
    foreign.write_distillkit(tmp_path / "whole", whole, {**foreign.EXACT, **size})
    assert run(source="whole", store="labels") == 0
    known = TeacherStore.open(tmp_path / "labels").spec.capture_fields
    assert (known["label"], known["rank"], known["tail"]) == ("exact", "exact", "unknown")
    assert main([*words, str(tmp_path / "labels")]) == 2
    assert "expected --accept-imported" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "labels"), "--accept-imported"]) == 0
    summary = json.loads((tmp_path / "page" / "summary.json").read_text())
    assert summary["store"]["imported_from"] == "distillkit"


def test_replies_are_found_in_the_conversations(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'][0] }} {{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "chat")
    talks = [["hi", "ho"], ["hi", "ho", "and", "so"], ["what", "that is it"]]
    texts = [
        "".join(f"<s>{'ua'[n % 2]} {turn}{'</s>' * (n % 2)}" for n, turn in enumerate(talk))
        for talk in talks
    ]
    tokens = [np.array(tokenizer(text)["input_ids"]) for text in (*texts, "<s>u no<s>a no</s>")]
    tokens[2] = tokens[2][:-4]  # cut by the sampler
    records = [foreign.distillkit_record(one, pad=None if n == 2 else 0)
               for n, one in enumerate(tokens)]  # fmt: skip
    foreign.write_distillkit(tmp_path / "source", records)
    messages = [
        {"messages": [
            {"role": ["user", "assistant"][n % 2], "content": turn}
            for n, turn in enumerate(talk)
        ]}
        for talk in talks
    ]  # fmt: skip
    write_jsonl(tmp_path / "corpus.jsonl", messages)
    flags = ("--response-from", "messages", "--data", str(tmp_path / "corpus.jsonl"))
    assert run("--tokenizer", str(tmp_path / "chat"), *flags) == 0
    assert "1 example without a row" in capsys.readouterr().out
    store = TeacherStore.open(tmp_path / "store")
    replies = []
    for index in range(len(store)):
        batch = store.read([index])
        if batch.num_rows:
            replies.append(tokenizer.decode(batch.labels.tolist()).replace(" ", ""))
            position = int(batch.logit_positions[0])
            exact = foreign.log_probs(np.append(batch.token_ids, 0).astype(np.int64))
            if len(batch.token_ids) != len(tokens[2]):
                assert batch.column("argmax")[0] == exact[position].argmax()
    assert sorted(replies) == ["ho</s>", "ho</s>so</s>", "thatis"]
    write_jsonl(tmp_path / "corpus.jsonl", [{"prompt": "a", "response": "b"}])
    again = ("--store", str(tmp_path / "again"))
    assert run("--tokenizer", str(tmp_path / "chat"), *flags, *again) == 2
    assert "no column 'messages'" in capsys.readouterr().err
    assert run("--response-from", "messages") == 2
    assert "only one was given" in capsys.readouterr().err
