"""MaxText's records: the protocol buffer, packed texts, and which token a row is about."""

from pathlib import Path

import numpy as np
import pytest
from helpers import foreign
from helpers.tiny import tiny_tokenizer

from caskd.precompute.imports.formats import FORMATS
from caskd.precompute.imports.maxtext import parse_example, record_examples
from caskd.precompute.imports.source import Reading


def varint(value: int) -> bytes:
    """A number of a protocol buffer, by the book."""
    value &= (1 << 64) - 1
    digits = []
    while True:
        digits.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(digits)


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(features: dict[str, np.ndarray], *, packed: bool = True) -> bytes:
    """A serialised tf.train.Example."""
    entries = b""
    for name, values in features.items():
        floats = values.dtype.kind == "f"
        one = [v.astype("<f4").tobytes() if floats else varint(int(v)) for v in values]
        key = varint(1 << 3 | (5 if floats else 0))
        data = field(1, b"".join(one)) if packed else b"".join(key + value for value in one)
        feature = field(2 if floats else 3, data)
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


@pytest.mark.parametrize("packed", [True, False])
def test_lists_of_a_message(packed: bool) -> None:
    features = {
        "a": np.array([0, 1, 127, 128, 300, 2**62, -1, -300]),
        "b": np.array([0.5, -2.0, 1e30], np.float32),
        "empty": np.zeros(0, np.int64),
    }
    found = parse_example(message(features, packed=packed))
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in features.items()
    }


ENDLESS = field(1, field(1, field(2, field(3, field(1, b"\x80")))))


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\xff" * 12, b"\x0b", ENDLESS])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"protocol buffer|integers"):
        parse_example(data)


def record(texts: list[np.ndarray], padding: int = 2, *, targets: bool = True) -> dict:
    """Packed texts as MaxText has them: inputs and targets of each, then padding."""
    features: dict[str, list] = {"inputs": [], "inputs_segmentation": [], "targets": [],
                                 "targets_segmentation": []}  # fmt: skip
    ids, values = [], []
    for number, tokens in enumerate(texts, start=1):
        count = len(tokens) - 1
        features["inputs"] += tokens[:-1].tolist()
        features["targets"] += tokens[1:].tolist()
        features["inputs_segmentation"] += [number] * count
        features["targets_segmentation"] += [0, *[number] * (count - 1)]
        found = foreign.top(foreign.log_probs(tokens) + 5, 3)
        ids += found[0].ravel().tolist()
        values += found[1].ravel().tolist()
    for name in features:
        features[name] += [0] * padding
    if not targets:
        del features["targets"]
    made = {name: np.array(numbers) for name, numbers in features.items()}
    made["top_k_indices"] = np.array(ids + [0] * 3 * padding)
    made["top_k_logits"] = np.array(values + [0.0] * 3 * padding, np.float32)
    return made


@pytest.mark.parametrize("targets", [True, False])
def test_packed_texts_are_taken_apart(targets: bool) -> None:
    texts = foreign.examples(3, shortest=4)
    found = list(record_examples(record(texts, targets=targets)))
    assert len(found) == 3
    for example, tokens in zip(found, texts, strict=True):
        kept = tokens if targets else tokens[:-1]
        assert example.token_ids.tolist() == kept.tolist()
        assert np.flatnonzero(example.is_response).tolist() == [*range(2, len(kept))]
        exact = foreign.log_probs(tokens)[1 : len(kept) - 1]
        ids, values = foreign.top(exact, 3)
        assert example.ids.tolist() == ids.tolist()
        expected = values - np.log(np.exp(values).sum(1, keepdims=True))
        np.testing.assert_allclose(example.logprobs, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "fact"),
    [
        ("inputs", None, "no feature 'inputs'"),
        ("top_k_logits", slice(1, None), "logits"),
        ("targets", slice(1, None), "targets for"),
        ("inputs_segmentation", slice(1, None), "inputs_segmentation for"),
        ("targets", slice(None, None, -1), "one position later"),
    ],
)
def test_contradictions_are_refused(name: str, change: slice | None, fact: str) -> None:
    features = record(foreign.examples(2, shortest=5))
    if change is None:
        del features[name]
    else:
        features[name] = features[name][change]
    with pytest.raises(ValueError, match=fact):
        list(record_examples(features))


def test_files_are_read_in_order(tmp_path: Path) -> None:
    module = pytest.importorskip(
        "array_record.python.array_record_module", reason="array_record is not installed"
    )
    texts = foreign.examples(4, shortest=4)
    for number in range(2):
        name = f"teacher_top_k_part_{number:05d}_host_000.array_record"
        writer = module.ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        for text in texts[2 * number : 2 * number + 2]:
            writer.write(message(record([text])))
        writer.close()
    reading = Reading.of(tiny_tokenizer(), pad_is_eos=False)
    source = FORMATS["maxtext"](str(tmp_path), reading)
    assert not source.has_tail
    found = [example.token_ids.tolist() for example in source.examples]
    assert found == [text.tolist() for text in texts]
    (tmp_path / "x.array_record").write_bytes(b"not an array record" * 100)
    with pytest.raises(ValueError, match=r"x\.array_record: record 0"):
        list(FORMATS["maxtext"](str(tmp_path / "x.array_record"), reading).examples)
