"""The demo's models: a token per character, equal weights for equal seeds, a small teacher."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.cli.demo.demo_models import TEACHER, character_tokenizer, write_student
from caskd.cli.demo.demo_tasks import generate
from caskd.store.corpus import token_bytes, vocab_digest


def test_one_token_per_character() -> None:
    tokenizer = character_tokenizer()
    for record in itertools.islice(generate(0, "train"), 200):
        text = record["prompt"] + record["response"]
        ids = tokenizer.encode(text)
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) == len(text) + 1
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    character_tokenizer().save_pretrained(tmp_path)
    text = "convert 3 km to m: <=> ~ !"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.encode(text) == character_tokenizer().encode(text)


def weights(path: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path)
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_equal_seeds_give_equal_students(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_student(tmp_path / name, seed, hidden_size=32, num_layers=1)
    first, second, third = (weights(tmp_path / name) for name in "abc")
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_writing_a_student_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    write_student(tmp_path, 0, hidden_size=32, num_layers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_teacher_has_the_students_vocabulary() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    digests = [vocab_digest(token_bytes(each)) for each in (tokenizer, character_tokenizer())]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_the_teacher_is_small(name: str) -> None:
    assert 0 < (TEACHER / name).stat().st_size < 1_000_000
