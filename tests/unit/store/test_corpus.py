"""Reading corpora: file formats agree, and each mistake is a one-line error."""

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from helpers.records import write_jsonl

from caskd.store.corpus import Columns, corpus_digest, decide_columns, read_records
from caskd.store.errors import UsageError

RECORDS = [
    {"prompt": "a, b", "response": 'say "yes"\nor no', "task": "one"},
    {"prompt": "", "response": "007", "task": "NA"},
    {"prompt": "é ✓", "response": "null", "task": ""},
]


@pytest.fixture
def files(tmp_path):
    table = pa.Table.from_pylist(RECORDS)
    write_jsonl(tmp_path / "a.jsonl", RECORDS)
    pq.write_table(table, tmp_path / "a.parquet")
    pc.write_csv(table, tmp_path / "a.csv")
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as sink:
        sink.write_table(table)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as sink:
        sink.write_table(table)
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv", "file.arrow", "stream.arrow"])
def test_every_format_gives_the_same_records_and_digest(files, name):
    file = str(files / name)
    assert list(read_records([file])) == RECORDS
    digest, count = corpus_digest(read_records([file]), Columns())
    assert count == 3
    assert digest == corpus_digest(iter(RECORDS), Columns())[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_not_part_of_the_data(files, name):
    marked = files / f"marked-{name}"
    marked.write_bytes(b"\xef\xbb\xbf" + (files / name).read_bytes())
    assert list(read_records([str(marked)])) == RECORDS


def test_files_are_read_in_the_order_given(files):
    extra = write_jsonl(files / "b.jsonl", [{"prompt": "x", "response": "y"}])
    names = [str(extra), str(files / "a.csv")]
    assert [r["prompt"] for r in read_records(names)] == ["x", "a, b", "", "é ✓"]


def test_digest_sees_content_order_and_task_but_not_names():
    base = corpus_digest(iter(RECORDS), Columns())[0]
    renamed = [{"q": r["prompt"], "a": r["response"], "task": r["task"], "id": 1} for r in RECORDS]
    assert corpus_digest(iter(renamed), Columns(prompt="q", response="a"))[0] == base
    assert corpus_digest(iter(RECORDS[::-1]), Columns())[0] != base
    assert corpus_digest(iter(RECORDS[:2]), Columns())[0] != base
    moved = [{**r, "prompt": r["prompt"] + r["response"][:1]} for r in RECORDS]
    assert corpus_digest(iter(moved), Columns())[0] != base
    other_task = [{**r, "task": "two"} for r in RECORDS]
    assert corpus_digest(iter(other_task), Columns())[0] != base


@pytest.mark.parametrize(
    ("record", "columns", "kind"),
    [
        ({"prompt": "", "response": ""}, Columns(), "prompt"),
        ({"messages": [], "prompt": "", "response": ""}, Columns(), "messages"),
        ({"text": ""}, Columns(), "text"),
        ({"prompt": "", "text": ""}, Columns(), "text"),
        ({"prompt": "", "response": "", "body": ""}, Columns(text="body"), "text"),
        ({"prompt": "", "target": "", "text": ""}, Columns(response="target"), "prompt"),
    ],
)
def test_the_kind_follows_from_the_columns(record, columns, kind):
    assert decide_columns(record, columns).kind == kind


@pytest.mark.parametrize(
    ("record", "columns", "said"),
    [
        ({"prompt": "", "target": ""}, Columns(), ["'response'", "'target'", "--response-column"]),
        ({"a": "", "b": ""}, Columns(), ["'prompt' and 'response'", "--prompt-column"]),
        ({"text": ""}, Columns(prompt="question"), ["'question'", "--prompt-column"]),
        ({"prompt": "", "response": ""}, Columns(messages="chat"), ["'chat'", "--messages-column"]),
    ],
)
def test_a_wrong_column_names_the_columns_and_the_flag(record, columns, said):
    with pytest.raises(UsageError) as caught:
        decide_columns(record, columns)
    assert "\n" not in str(caught.value)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, r"--data .*none\.jsonl.*no such file"),
        ("a.txt", b"x", "expected one of .jsonl"),
        ("empty.jsonl", b"\n\n", "no records"),
        ("empty.csv", b"", "no records"),
        ("header.csv", b"prompt,response\n", "no records"),
        ("bad.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2"),
        ("list.jsonl", b"[1, 2]\n", "line 1: got a list"),
        ("latin.jsonl", b'{"prompt": "\xe9"}\n', "line 1"),
        ("bad.parquet", b"PAR1 and no more", "not readable as Parquet"),
        ("bad.arrow", b"not an arrow file at all", "not readable as Arrow"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        list(read_records([str(tmp_path / name)]))
    assert "\n" not in str(caught.value)


def test_missing_files_are_found_before_the_first_is_read(files):
    with pytest.raises(UsageError, match=r"gone\.csv"):
        read_records([str(files / "a.jsonl"), str(files / "gone.csv")])
    with pytest.raises(UsageError, match="--data"):
        read_records([])


@pytest.mark.parametrize(
    ("value", "found"), [(None, "is null"), (3, "holds int"), (["a"], "holds list")]
)
def test_text_that_is_no_text_is_refused(value, found):
    records = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": value}]
    with pytest.raises(UsageError, match=f"'response' {found}.*--response-column"):
        corpus_digest(iter(records), Columns())


def test_a_column_that_vanishes_later_is_refused():
    records = [{"prompt": "a", "response": "b"}, {"text": "a"}]
    columns = decide_columns(records[0], Columns())
    with pytest.raises(UsageError, match=r"has text; expected prompt and response.*two stores"):
        corpus_digest(iter(records), columns)
