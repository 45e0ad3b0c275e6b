"""Digests of weights and config, and values of older predictions files."""

import hashlib
import json

import pytest

from caskd.models import config_digest, may_be_same_config, weights_digest

CONFIG = {"model_type": "llama", "hidden_size": 8, "nested": {"b": 1, "a": [2]}}


def folder_of(tmp_path, name, config):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def test_the_value_is_that_of_stores(tmp_path):
    """Stores hold it: sha256 of the sorted JSON without four keys."""
    expected = hashlib.sha256(
        b'{"hidden_size": 8, "model_type": "llama", "nested": {"a": [2], "b": 1}}'
    ).hexdigest()
    assert config_digest(folder_of(tmp_path, "a", CONFIG)) == expected


@pytest.mark.parametrize("key", ["_name_or_path", "transformers_version", "torch_dtype", "dtype"])
def test_who_wrote_a_config_is_no_part_of_it(tmp_path, key):
    other = folder_of(tmp_path, "b", {key: "x", **CONFIG})
    assert config_digest(other) == config_digest(folder_of(tmp_path, "a", CONFIG))


def test_every_other_key_is_part_of_a_config(tmp_path):
    first = config_digest(folder_of(tmp_path, "a", CONFIG))
    assert config_digest(folder_of(tmp_path, "b", {**CONFIG, "hidden_size": 9})) != first
    assert config_digest(folder_of(tmp_path, "c", {**CONFIG, "logit_scale": 1.0})) != first


def test_a_weights_digest_covers_names_and_bytes(tmp_path):
    def digest(name, files):
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return weights_digest(folder)

    first = digest("a", {"x.safetensors": b"1", "y.safetensors": b"2"})
    assert digest("b", {"y.safetensors": b"2", "x.safetensors": b"1", "z.bin": b"3"}) == first
    assert digest("c", {"x.safetensors": b"2", "y.safetensors": b"1"}) != first
    assert digest("d", {"x.safetensors": b"1"}) != first
    lines = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in (("x.safetensors", b"1"), ("y.safetensors", b"2"))
    )
    assert first == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a" * 64, "a" * 64, True),
        ("a" * 64, "b" * 64, False),
        ("a" * 32, "b" * 64, True),
        ("a" * 64, "b" * 32, True),
        ("a" * 32, "b" * 32, True),
        (None, None, True),
        (None, "a" * 64, False),
        (None, "a" * 32, True),
    ],
)
def test_a_digest_of_an_older_predictions_file_compares_with_nothing(first, second, same):
    assert may_be_same_config(first, second) is same
