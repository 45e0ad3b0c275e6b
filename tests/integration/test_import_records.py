"""`caskd import` of records: data sets, axolotl's column and NeMo-Aligner's JSONL."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import foreign
from helpers.records import write_jsonl
from helpers.tiny import tiny_tokenizer

from caskd.cli.main import main
from caskd.precompute.imports.examples import ForeignExample
from caskd.precompute.imports.formats import FORMATS
from caskd.precompute.imports.source import Reading
from caskd.store import TeacherStore
from caskd.store.errors import UsageError

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'][0] }} {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def reading() -> Reading:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Reading.of(tokenizer, pad_is_eos=False)


def read(path: Path, name: Any, reading: Reading) -> list[ForeignExample]:
    return list(FORMATS[name](str(path), reading).examples)


def rows(tokens: np.ndarray, num: int, k: int = 4) -> tuple[list[Any], list[Any]]:
    """Ids and log-probabilities of the last `num` tokens, as JSON."""
    ids, values = foreign.top(foreign.log_probs(tokens)[-num:], k)
    return ids.tolist(), [[float(value) for value in row] for row in values]


def expect(example: ForeignExample, tokens: np.ndarray, num: int, k: int = 4) -> None:
    """The example has rows of its last `num` tokens, each about its own token."""
    assert example.token_ids.tolist() == tokens.tolist()
    assert np.flatnonzero(example.is_response).tolist() == list(range(len(tokens)))[-num:]
    ids, values = foreign.top(foreign.log_probs(tokens)[-num:], k)
    assert example.ids.tolist() == ids.tolist()
    np.testing.assert_allclose(example.logprobs, values, atol=1e-5)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_of_a_data_set_are_of_its_last_tokens(
    tmp_path: Path, reading: Reading, ending: str
) -> None:
    texts = foreign.examples(3, shortest=5)
    records = []
    for tokens in texts:
        ids, values = rows(tokens, 4)
        records.append({"input_ids": tokens.tolist(), "target_token_ids": ids, "logprobs": values})
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        write_jsonl(path, records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    for example, tokens in zip(read(path, "dataset", reading), texts, strict=True):
        expect(example, tokens, 4)


def test_ragged_rows_keep_their_own_width(tmp_path: Path, reading: Reading) -> None:
    record = {
        "input_ids": [4, 5, 6, 7],
        "target_token_ids": [None, [9, 8], [], [7]],
        "target_logprobs": [None, [-0.5, -2.0], [], [None]],
    }
    write_jsonl(tmp_path / "rows.jsonl", [record])
    (example,) = read(tmp_path / "rows.jsonl", "dataset", reading)
    assert example.is_response.tolist() == [0, 1, 0, 1]
    assert example.ids.tolist() == [[9, 8], [7, -1]]
    assert np.isnan(example.logprobs).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("version", [1, 2])
def test_axolotls_rows_are_of_the_end_of_the_chat(
    tmp_path: Path, reading: Reading, version: int
) -> None:
    messages = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "sum"}]
    text = "<s>u add<s>a sum</s>"
    tokens = np.array(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])
    ids, values = rows(tokens, 4)
    record: dict[str, Any] = {"messages": messages, "target_token_ids": ids, "logprobs": values}
    if version == 1:
        del record["target_token_ids"]
        record["logprobs"] = [
            [{"token": f"token_id:{i}", "logprob": x} for i, x in zip(*row, strict=True)]
            for row in zip(ids, values, strict=True)
        ]
        record["logprobs"][1].insert(2, None)
    write_jsonl(tmp_path / "rows.jsonl", [record])
    (example,) = read(tmp_path / "rows.jsonl", "axolotl", reading)
    if version == 1:  # an entry that is None is absent
        assert example.ids[:, 2].tolist()[1] == -1
        example = ForeignExample(
            example.token_ids,
            example.is_response,
            np.array([[i for i in row if i >= 0] for row in example.ids]),
            np.array([[x for x in row if np.isfinite(x)] for row in example.logprobs]),
        )
    expect(example, tokens, 4)


def nemo_record(tokens: np.ndarray, num: int, padding: int = 2) -> dict[str, Any]:
    """A record of NeMo-Aligner: `num` rows at the end of the text, then padding."""
    logits = foreign.log_probs(tokens) + 3.0
    logits -= logits.max(1, keepdims=True)
    ids, values = foreign.top(logits, 4)
    pad = [0] * padding
    mask = [0.0] * (len(tokens) - 1 - num) + [1.0] * num + [0.0] * padding
    return {
        "tokens": [*tokens[:-1].tolist(), *pad],
        "labels": [*tokens[1:].tolist(), *pad],
        "loss_mask": mask,
        "topk_token_ids": [*ids.tolist(), *[[0] * 4] * padding],
        "topk_logits": [*values.tolist(), *[[0.0] * 4] * padding],
        "log_sum_exp_logits": [*np.log(np.exp(logits).sum(1)).tolist(), *[0.0] * padding],
    }


@pytest.mark.parametrize("padding", [0, 2])
def test_nemo_aligners_rows_are_normalised(tmp_path: Path, reading: Reading, padding: int) -> None:
    texts = foreign.examples(3, shortest=5)
    write_jsonl(tmp_path / "rows.jsonl", [nemo_record(tokens, 3, padding) for tokens in texts])
    for example, tokens in zip(
        read(tmp_path / "rows.jsonl", "nemo-aligner", reading), texts, strict=True
    ):
        expect(example, tokens, 3)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"input_ids": None}, "no column input_ids"),
        ({"input_ids": [4, "5", 6]}, "input_ids holds something other than token ids"),
        ({"input_ids": [4, -5, 6]}, "input_ids holds"),
        ({"logprobs": None}, "no column target_logprobs or logprobs"),
        ({"logprobs": [[-1.0]]}, "2 rows of ids, but 1 of values"),
        ({"logprobs": [[-1.0], [-1.0]]}, "row 0 has 2 ids, but 1 values"),
        ({"logprobs": [[-1.0, "x"], [-1.0, -2.0]]}, "'x' is no log-probability"),
        ({"logprobs": "text"}, "logprobs is no list"),
        ({"target_token_ids": [[1, 2.5], [3, 4]]}, "'2.5' is no token id"),
        ({"target_token_ids": [[1, 1 << 70], [3, 4]]}, "is no token id"),
        ({"input_ids": [4]}, "2 rows for 1 tokens"),
        ({"temperature": 2.0}, "temperature is 2.0"),
    ],
)
def test_other_records_are_refused_by_number(
    tmp_path: Path, reading: Reading, change: dict[str, Any], fact: str
) -> None:
    good = {
        "input_ids": [4, 5, 6],
        "target_token_ids": [[1, 2], [3, 4]],
        "logprobs": [[-1.0, -2.0], [-1.0, -2.0]],
    }
    write_jsonl(tmp_path / "rows.jsonl", [good, {**good, **change}])
    with pytest.raises(ValueError, match="record 1: ") as caught:
        read(tmp_path / "rows.jsonl", "dataset", reading)
    assert fact in str(caught.value)


@pytest.mark.parametrize(
    "mask", [[[[1], [1]]] * 2, [["1", "0"]] * 2, [[1, None]] * 2, [[1, 0.5]] * 2]
)
def test_masks_hold_zeros_and_ones(tmp_path: Path, reading: Reading, mask: Any) -> None:
    cells = {"target_token_ids": [[5, 1], [6, 2]], "target_logprobs": [[-1.0, -2.0]] * 2}
    record = {"input_ids": [4, 5, 6], **cells, "target_mask": mask}
    write_jsonl(tmp_path / "rows.jsonl", [record])
    with pytest.raises(UsageError, match=r"record 0: .*target_mask.* 0 and 1"):
        read(tmp_path / "rows.jsonl", "axolotl", reading)
    record = {
        "tokens": [4, 5], "labels": [5, 6], "loss_mask": mask[0], "log_sum_exp_logits": [3.0, 3.0],
        "topk_token_ids": cells["target_token_ids"], "topk_logits": cells["target_logprobs"],
    }  # fmt: skip
    write_jsonl(tmp_path / "rows.jsonl", [record])
    with pytest.raises(UsageError, match=r"record 0: loss_mask .* 0 and 1"):
        read(tmp_path / "rows.jsonl", "nemo-aligner", reading)


def test_advice_names_flags_of_import_only(tmp_path: Path, reading: Reading) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for messages in (chat, "text", [{"role": "user"}]):
        write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages, "logprobs": []}])
        with pytest.raises(UsageError) as caught:
            read(tmp_path / "rows.jsonl", "axolotl", replace(reading, tokenizer=tiny_tokenizer()))
        flags = set(re.findall(r"--[a-z-]+", str(caught.value)))
        assert flags <= {"--tokenizer"}, caught.value


def test_shifted_labels_are_refused(tmp_path: Path, reading: Reading) -> None:
    record = nemo_record(foreign.examples(1, shortest=6)[0], 3, 0)
    record["labels"] = [*record["labels"][1:], 7]
    write_jsonl(tmp_path / "rows.jsonl", [record])
    with pytest.raises(ValueError, match=r"record 0: labels\[\d\] is"):
        read(tmp_path / "rows.jsonl", "nemo-aligner", reading)


def test_a_renormalised_source_has_an_unknown_tail(
    tmp_path: Path, imported: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    records = []
    for tokens in foreign.examples(3):
        ids, values = rows(tokens, len(tokens) - 1)
        total = np.log(np.exp(values).sum(1, keepdims=True))
        values = (np.array(values) - total).tolist()
        records.append({"input_ids": tokens.tolist(), "target_token_ids": ids, "logprobs": values})
    assert imported(records, "--encoding", "exact") == 0
    assert "--tail renormalise" in capsys.readouterr().out
    store = TeacherStore.open(tmp_path / "store")
    assert store.spec.capture_fields["tail"] == "unknown"
    assert not store.read([0]).column("tail_mass").any()
    assert main(["store", "verify", "--full", str(tmp_path / "store")]) == 0
    assert main(["store", "show", str(tmp_path / "store")]) == 0
    assert main(["store", "card", str(tmp_path / "store")]) == 0
    out = capsys.readouterr().out
    assert out.count("mported from dataset") == 2
    assert "--accept-imported --tail renormalise" in out


def test_shifted_rows_are_warned_of(
    imported: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for shift, warns in ((0, False), (1, True)):
        records = []
        for tokens in foreign.examples(6, shortest=8):
            ids, values = rows(tokens, len(tokens) - 1, 2)
            ids, values = ids[: len(ids) - shift], values[: len(ids) - shift]
            records.append(
                {"input_ids": tokens.tolist(), "target_token_ids": ids, "logprobs": values}
            )
        assert imported(records, "--dry-run") == 0
        assert ("warning" in capsys.readouterr().out) == warns


def test_json_that_is_none_is_one_line(
    tmp_path: Path, imported: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported([]) == 2
    assert "no records" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text(json.dumps([1]) + "\n{")
    words = ["import", "dataset", str(tmp_path / "rows.jsonl"), "--teacher-name", "T"]
    where = ["--tokenizer", str(tmp_path / "tokenizer"), "--store", str(tmp_path / "store")]
    assert main([*words, *where]) == 2
    err = capsys.readouterr().err
    assert "line 1: got a list" in err
    assert "--data" not in err
    assert main([*words, *where, "--pad-is-eos"]) == 2
    assert "--pad-is-eos: is of distillkit sources" in capsys.readouterr().err
