"""Tokens as bytes for three families of tokenizers, and the digests over them.

It tests `store/corpus/vocabulary.py`, and stands here because a real tokenizer comes from
transformers, which imports torch: no test of `tests/unit/store` does.
"""

import pytest
from helpers.tiny import tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from caskd.store.corpus import template_digest, token_bytes, tokenizer_digest, vocab_digest
from caskd.store.corpus.vocabulary import vocab_size

TEXT = "Héllo wörld ✓ 10\n\tü"


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    backend.train_from_iterator([TEXT] * 20, trainer)
    backend.add_tokens([AddedToken("naïve Ġ", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def sentencepiece() -> PreTrainedTokenizerFast:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581low", "\u2581w"]
    backend = Tokenizer(
        models.BPE(
            {token: id_ for id_, token in enumerate(tokens)},
            [("\u2581", "w")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("build", [byte_level, sentencepiece])
def test_the_bytes_of_a_text_s_tokens_are_the_text(build):
    tokenizer = build()
    tokens = token_bytes(tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert b"".join(tokens[id_] for id_ in ids) == TEXT.encode()


def test_added_tokens_are_their_own_text():
    tokenizer = byte_level()
    tokens = token_bytes(tokenizer)
    assert tokens[tokenizer.eos_token_id] == b"<eos>"
    assert tokens[-1] == "naïve Ġ".encode()
    assert len(tokens) == vocab_size(tokenizer)


def test_holes_in_the_ids_are_empty():
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_bytes(tokenizer) == [b"a", b"", b"", b"", b"", b"b"]


def test_vocab_digest_sees_order_and_borders():
    assert vocab_digest([b"a", b"b"]) != vocab_digest([b"b", b"a"])
    assert vocab_digest([b"ab", b""]) != vocab_digest([b"a", b"b"])
    assert vocab_digest([b"a"]) != vocab_digest([b"a", b""])


def test_digests_survive_saving_and_ignore_a_caller_s_state(tmp_path):
    tokenizer = tiny_tokenizer()
    before = tokenizer_digest(tokenizer)
    tokenizer(["abc", "a"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_digest(again) == before
    assert vocab_digest(token_bytes(again)) == vocab_digest(token_bytes(tokenizer))


def test_tokenizer_digest_sees_template_and_pre_tokeniser():
    tokenizer = tiny_tokenizer()
    before, template = tokenizer_digest(tokenizer), template_digest(tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_digest(tokenizer) != before
    assert template_digest(tokenizer) != template
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert tokenizer_digest(tokenizer) != before
