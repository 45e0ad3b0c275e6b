"""`caskd store export`, and the way back through `caskd import`."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import foreign, stores
from helpers.compact_stores import OldWriter
from helpers.format2_stores import make_store
from helpers.tiny import tiny_tokenizer

from caskd.cli.main import main
from caskd.store import TeacherStore
from caskd.store.corpus import TokenizedExample, token_bytes, vocabulary_identity
from caskd.store.write import plan_store

FORMATS = {"distillkit": "distillkit", "axolotl": "axolotl", "parquet": "dataset"}


def prompts_and_rows(root: Path, encoding: str = "exact") -> TeacherStore:
    """A store of prompts and responses with rows of unequal length, one of them not finite."""
    tokenizer = tiny_tokenizer()
    vocab = token_bytes(tokenizer)
    texts = foreign.examples(5, shortest=6)
    plain = stores.identity(5, encoding)
    identity = {**plain, "vocabulary": vocabulary_identity(tokenizer, vocab)}
    examples = []
    for n, tokens in enumerate(texts):
        mask = (np.arange(len(tokens)) >= 3).astype(np.uint8)
        mask[5:6] = n % 2  # context between two replies
        examples.append(TokenizedExample(tokens.astype(np.uint32), mask, "ok", n, f"t{n % 2}"))
    plan_store(root, identity, examples, shard_rows=64, vocab=vocab)
    writer = OldWriter(root)
    for pilot in filter(None, [writer.pilot()]):
        writer.commit_pilot(_rows(pilot, pilot.num_rows))
    work = writer.shard(0)
    writer.commit(work, _rows(work, 64), [1])
    writer.seal()
    return TeacherStore.open(root)


def _rows(work: Any, num_rows: int) -> dict[str, np.ndarray]:
    rows: dict[str, np.ndarray] = {}
    for example in work.examples:
        positions = np.flatnonzero(example.is_response)
        logits = foreign.log_probs(example.token_ids.astype(np.int64))[positions - 1] + 2.0
        labels = example.token_ids[positions]
        fields = stores.row_fields(logits.astype(np.float32), labels, 5)
        kept = 1 + np.arange(len(positions)) % 5
        kept[0] = 0 if example.index == 1 else kept[0]
        cells = np.arange(5) < kept[:, None]
        p = np.exp(fields["topk_logits"] - fields["logsumexp"][:, None])
        fields["tail_mass"] = (1 - np.where(cells, p, 0).sum(1)).astype(np.float32)
        fields["topk_logits"] = np.where(cells, fields["topk_logits"], -np.inf)
        fields["topk_ids"] = np.where(cells, fields["topk_ids"], 0)
        fields["num_kept"] = kept.astype(np.uint16)
        for name, values in fields.items():
            target = rows.setdefault(name, np.zeros((num_rows, *values.shape[1:]), values.dtype))
            target[example.row_start : example.row_start + len(positions)] = values
    rows["topk_logits"][rows["num_kept"] == 0] = -np.inf
    return rows


def rows_by_label(store: TeacherStore) -> dict[tuple[Any, ...], dict[int, float]]:
    """The probabilities of each row, by the tokens before it and its label."""
    found = {}
    for index in range(len(store)):
        batch = store.read([index])
        tokens = batch.token_ids.tolist()
        p = np.exp(batch.column("topk_logits") - batch.column("logsumexp")[:, None])
        for n, kept in enumerate(batch.column("num_kept")):
            if kept:
                at = int(batch.logit_positions[n])
                cells = zip(batch.column("topk_ids")[n, :kept], p[n, :kept], strict=True)
                key = (*tokens[: at + 1], int(batch.labels[n]))
                found[key] = {int(id_): float(value) for id_, value in cells}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["exact", "compact"])
def test_the_way_back_gives_the_same_rows(tmp_path: Path, encoding: str) -> None:
    store = prompts_and_rows(tmp_path / "store", encoding)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    expected = rows_by_label(store)
    assert len(expected) == store.spec.num_rows - 1
    digests = set()
    for name, back in FORMATS.items():
        out = tmp_path / name
        words = ["store", "export", str(tmp_path / "store"), "--format", name, "--out", str(out)]
        assert main(words) == 0
        again = tmp_path / f"{name}-again"
        words = ["import", back, str(out), "--tokenizer", str(tmp_path / "tokenizer")]
        words += ["--teacher-name", "toy", "--encoding", "exact", "--store", str(again)]
        assert main(words) == 0
        imported = TeacherStore.open(again)
        found = rows_by_label(imported)
        assert found.keys() == expected.keys()
        # Exact: float32 of logits in place of log-probabilities. Compact: rescaled to the tail.
        tolerance = 1e-6 if encoding == "exact" else 5e-3
        for key, cells in expected.items():
            assert found[key].keys() == cells.keys()
            np.testing.assert_allclose(
                [found[key][id_] for id_ in cells], [*cells.values()], atol=tolerance
            )
        tail = [imported.read([n]).column("tail_mass") for n in range(len(imported))]
        digests.add(np.sort(np.concatenate(tail)).round(5).tobytes())
    assert len(digests) == 1


def test_the_row_of_eos_comes_back_where_it_is_the_pad_token(tmp_path: Path) -> None:
    store = prompts_and_rows(tmp_path / "store")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for name, back in FORMATS.items():
        out, again = tmp_path / name, tmp_path / f"{name}-again"
        words = ["store", "export", str(tmp_path / "store"), "--format", name, "--out", str(out)]
        assert main(words) == 0
        words = ["import", back, str(out), "--tokenizer", str(tmp_path / "tokenizer")]
        assert main([*words, "--teacher-name", "toy", "--store", str(again)]) == 0
        assert rows_by_label(TeacherStore.open(again)).keys() == rows_by_label(store).keys()


def test_rows_stand_where_each_trainer_reads_them(tmp_path: Path) -> None:
    store = prompts_and_rows(tmp_path / "store")
    batch = store.read([0])
    argmax = dict(
        zip((batch.logit_positions + 1).tolist(), batch.column("argmax").tolist(), strict=True)
    )
    records = {}
    for name in FORMATS:
        out = tmp_path / name
        words = ["store", "export", str(tmp_path / "store"), "--format", name, "--out", str(out)]
        assert main(words) == 0
        (path,) = out.glob("*.parquet")
        records[name] = pq.read_table(path).to_pylist()[0]
    tokens = batch.token_ids.tolist()
    for record in records.values():
        assert record["input_ids"] == tokens
        labels = [tokens[n] if n in argmax else -100 for n in range(len(tokens))]
        assert record["labels"] == labels
    for position, id_ in argmax.items():
        assert records["parquet"]["target_token_ids"][position][0] == id_
        assert records["axolotl"]["target_token_ids"][position - 1][0] == id_
        assert records["axolotl"]["target_mask"][position - 1][0] == 1
    rows = records["distillkit"]["compressed_logprobs"]
    assert len(rows) == len(tokens) - 1
    sizes = [sum(value > -9e3 for value in np.array(row, np.uint8).view("<f4")) for row in rows]
    assert [n + 1 for n, size in enumerate(sizes) if size] == [*argmax]
    assert records["parquet"]["target_token_ids"][5] is None
    for row in records["distillkit"]["bytepacked_indices"]:  # no id stands twice
        digits = "".join(format(byte, "08b") for byte in row)
        ids = [int(digits[6 * n : 6 * n + 6], 2) for n in range(5)]
        assert len({*ids}) == 5


def test_other_stores_and_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["store", "export", "--format", "parquet"]
    make_store(tmp_path / "draws", "draws")
    assert main([*words, str(tmp_path / "draws"), "--out", str(tmp_path / "out")]) == 2
    assert "kind 'sampled'; expected kind 'topk'" in capsys.readouterr().err
    prompts_and_rows(tmp_path / "store")
    assert main([*words, str(tmp_path / "store"), "--out", str(tmp_path / "store")]) == 2
    assert "folder with files" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prompts_and_rows(tmp_path / "store")
    from caskd.store.exchange import export

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        export.export_store(store, "parquet", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
