"""Text rule 2: ids of the whole text, replies by bytes, whatever tokenizer and template."""

from functools import lru_cache

import numpy as np
import pytest
from helpers.chat_tokenizers import TEMPLATES, TOKENIZERS, wordpiece

from caskd.store.corpus import Columns, TextOptions, prompt_ids, token_bytes, tokenize_examples
from caskd.store.errors import UsageError

ENDS = {
    "chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", "zephyr": "</s>",
    "gemma": "<end_of_turn>", "phi3": "<|end|>", "qwen3": "<|im_end|>", "r1": "<|endoftext|>",
    "harmony": "<|return|>",
}  # fmt: skip
CONTEXT_TURNS = {"qwen3": 1, "harmony": 1}
REPLIES = ["It is.", "  It is\n\nso", "42", "\nIt", "中文 é", "say </s> and <|im_end|> twice", "x"]


@lru_cache
def tokenizer_of(name):
    return TOKENIZERS[name]()


def chat(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


def tokenize(tokenizer, record, **options):
    given = TextOptions(max_length=1000, **options)
    [example] = tokenize_examples(tokenizer, [record], Columns(), given, 0)
    return example


def joined(tokenizer, ids):
    return b"".join(token_bytes(tokenizer)[int(id_)] for id_ in ids)


def rows(example):
    return example.token_ids[example.is_response == 1]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_conversation_has_the_ids_of_transformers_and_its_reply_as_rows(name, template):
    tokenizer = tokenizer_of(name)
    tokenizer.chat_template = TEMPLATES[template]
    equal = 0
    for reply in REPLIES:
        messages = chat("What is it?", "It is 42", "Is it? ", reply)
        example = tokenize(tokenizer, {"messages": messages})
        own = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert example.status == "ok", (reply, example.reason)
        if not example.own_border:
            equal += 1
            assert own[: len(example.token_ids)] == example.token_ids.tolist(), reply
        assert example.num_context_turns == CONTEXT_TURNS.get(template, 0)
        last = np.flatnonzero(example.is_response == 0)[-1] + 1
        said = joined(tokenizer, example.token_ids[last:]).decode()
        content = reply.strip() if template in ("llama3", "gemma") else reply
        if template == "mistral":
            content = f" {content}"
        if name == "phi3-like":  # its special tokens absorb the white space behind them
            said, content = ("".join(t.split()) for t in (said, content))
        expected = f"{content}{ENDS[template]}"
        # A prefix behind a special token is the tokenizer's own, as it is at prediction.
        plain = said.replace("</s>  and", "</s> and").replace("|>  twice", "|> twice")
        assert plain in (expected, f" {expected}"), reply
        prompt = prompt_ids(tokenizer, {"messages": messages}, Columns())
        assert prompt == example.token_ids[: len(prompt)].tolist()
        assert len(prompt) == last
    # GPT-2's pattern splits a line break from the word behind it, but not at the end of a text.
    assert equal >= 3 or (name == "byte-level" and template in ("llama3", "qwen3"))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("reply", [" It is.", "It is.", "\nIt", "42", "中文", "é"])
@pytest.mark.parametrize("prompt", ["What is it?", "A: ", "so\n", "", "It", "<s>What"])
def test_nothing_is_inserted_between_prompt_and_response(name, reply, prompt):
    tokenizer = tokenizer_of(name)
    example = tokenize(tokenizer, {"prompt": prompt, "response": reply})
    own = tokenizer(prompt + reply, add_special_tokens=False)["input_ids"]
    given = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    ids = example.token_ids.tolist()
    assert ids[: len(given)] == given
    assert example.own_border or ids == [*own, tokenizer.eos_token_id]
    said = joined(tokenizer, rows(example)[:-1]).decode()
    # A fresh text, or one behind a special token, has the tokenizer's own prefix.
    assert said == reply or (prompt == "" and said == f" {reply}")
    assert prompt_ids(tokenizer, {"prompt": prompt, "response": reply}, Columns()) == given


def test_a_tokenizer_whose_bytes_lose_white_space_is_refused():
    with pytest.raises(
        UsageError, match=r"\(WordPiece\) .* expected bytes that reproduce the text"
    ):
        tokenize(wordpiece(), {"prompt": "a b", "response": "c d"})
