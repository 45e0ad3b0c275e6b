"""Corpora of strangers: damaged tables, columns nobody asked for, text that is none."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caskd.store.corpus import Columns, corpus_digest, read_records, text_columns
from caskd.store.corpus.parquet import parquet_batches
from caskd.store.errors import UsageError
from caskd.store.io import StrangeFileError

WANTED = text_columns(Columns())
ROWS = [
    {"prompt": f"p{i}", "response": f"r{i}" * 3, "score": i / 2, "tags": ["a"]} for i in range(99)
]
FLIPS = """
import random, sys
from caskd.store.corpus import Columns, corpus_digest, read_records, text_columns
from caskd.store.errors import CaskdError
data = open(sys.argv[1], "rb").read()
for seed in range(150):
    chance, damaged = random.Random(seed), bytearray(data)
    for _ in range(chance.choice((1, 1, 8))):
        damaged[chance.randrange(len(data))] = chance.randrange(256)
    length = chance.choice((len(data), chance.randrange(len(data))))
    open(sys.argv[1], "wb").write(damaged[:length])
    try:
        corpus_digest(read_records(sys.argv[1:], text_columns(Columns())), Columns())
    except CaskdError as error:
        assert len(str(error).splitlines()) == 1, error
"""


def write(path: Path) -> Path:
    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=40)
    else:
        path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".jsonl"])
def test_damage_never_ends_python(ending: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FLIPS, str(write(tmp_path / f"corpus{ending}"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_offsets_of_an_arrow_file_are_checked(tmp_path: Path) -> None:
    file = write(tmp_path / "corpus.arrow")
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 2, 4, 6))
    data = file.read_bytes()
    assert offsets in data
    file.write_bytes(data.replace(offsets, offsets[:4] + b"\xff\xff\xff\x7f" * 2 + offsets[12:]))
    with pytest.raises(UsageError, match=r"corpus\.arrow: not readable as Arrow"):
        list(read_records([str(file)], WANTED))


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_columns_that_nobody_asked_for_are_not_read(ending: str, tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"], "when": pa.array([2**63 - 1], pa.timestamp("ns"))})
    file = tmp_path / f"t{ending}"
    if ending == ".parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    assert list(read_records([str(file)], WANTED)) == [{"prompt": "a", "when": "<not read>"}]


def test_a_table_does_not_expand_beyond_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["x" * 100_000] * 500}), file)
    assert file.stat().st_size < 200_000
    with pq.ParquetFile(file) as source, pytest.raises(StrangeFileError, match="expands"):
        list(parquet_batches(source, ["text"], 10_000_000))


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    bad.write_text('{"prompt": "a\\ud800b \\ud83d\\ude00", "response": "c", "x": "\\udfff"}\n')
    good.write_text('{"prompt": "a\ufffdb \U0001f600", "response": "c"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"line 1: column 'prompt'.*--on-bad-text replace"):
        list(read_records([str(bad)], WANTED))
    replaced = read_records([str(bad)], WANTED, "replace")
    same = read_records([str(good)], WANTED)
    assert corpus_digest(replaced, Columns()) == corpus_digest(same, Columns())


@pytest.mark.parametrize(
    "value", ["[" * 900 + "]" * 900, "[" * 90_000, "1" * 5_000, '{"a": "' + "x" * 10]
)
def test_odd_json_of_a_record_is_one_line(value: str, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": ' + value + "}\n")
    with pytest.raises(UsageError, match=r"d\.jsonl, line 2: ") as caught:
        list(read_records([str(file)], WANTED))
    assert len(str(caught.value)) < 500
