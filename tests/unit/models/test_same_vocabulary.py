"""A tokenizer reads the ids of a store only if every id stands for the same bytes."""

from types import SimpleNamespace

import pytest
from helpers.tiny import ALPHABET, tiny_tokenizer

from caskd.models import check_vocabulary
from caskd.store.corpus import token_bytes, vocab_digest
from caskd.store.errors import IdentityError


def spec_of(tokenizer):
    vocab = token_bytes(tokenizer)
    return SimpleNamespace(vocab_digest=vocab_digest(vocab), vocab_size=len(vocab), teacher="big")


def test_the_same_vocabulary_is_accepted():
    check_vocabulary(tiny_tokenizer(), spec_of(tiny_tokenizer()), "--student x")


@pytest.mark.parametrize("alphabet", [ALPHABET[::-1], ALPHABET[:-1], ALPHABET + "@"])
def test_another_vocabulary_is_refused_with_both_values(alphabet):
    spec, other = spec_of(tiny_tokenizer()), tiny_tokenizer(alphabet)
    with pytest.raises(IdentityError) as caught:
        check_vocabulary(other, spec, "--student x")
    own = token_bytes(other)
    for fact in ("--student x", str(len(own)), vocab_digest(own)[:12], "50", spec.vocab_digest[:12],
                 "teacher big", "expected a student with the teacher's tokenizer"):  # fmt: skip
        assert fact in str(caught.value)
