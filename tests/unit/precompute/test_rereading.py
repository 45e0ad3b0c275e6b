"""Texts of generated answers, as a capture of them reads their tokens."""

from typing import Any

import pytest
from helpers.chat_tokenizers import TEMPLATES, TOKENIZERS

from caskd.models.decoding import StopTexts, answer_text
from caskd.models.engines.answer_shapes import read_answer
from caskd.precompute.responses.answering import _Served
from caskd.precompute.responses.questions import answered
from caskd.precompute.responses.rereading import Rereading
from caskd.precompute.responses.writing import (
    LENGTH_DIFFERS,
    RETOKENIZED,
    TEXT_DIFFERS,
    Response,
)
from caskd.store.corpus import (
    ChatOptions,
    Columns,
    TextOptions,
    token_bytes,
    tokenize_examples,
)

PROMPT = {"prompt": "What is it? It says:"}
ASKED = {"messages": [{"role": "user", "content": "What is it?"}]}
ANSWERS = (" It is so.", "It is", "\nIt is so", "é It", "  It")


def reread(tokenizer: Any, record: dict[str, Any], kind: str) -> Rereading:
    return Rereading.of(tokenizer, [record], Columns(kind=kind), ChatOptions())


def captured(tokenizer: Any, record: dict[str, Any], kind: str, found: Response) -> list[int]:
    """The response tokens in a store of the written record."""
    columns = Columns(kind=kind)
    written = answered(record, columns, found.text, found.finished)
    options = TextOptions(max_length=999, keep_unfinished=True)
    example = tokenize_examples(tokenizer, [written], columns, options, 0)[0]
    return example.token_ids[example.is_response == 1].tolist()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_written_answers_have_the_tokens_that_were_generated(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    end = tokenizer.eos_token_id
    given = tokenizer(PROMPT["prompt"], add_special_tokens=False)["input_ids"]
    for answer in ANSWERS:
        whole = tokenizer(PROMPT["prompt"] + answer, add_special_tokens=False)["input_ids"]
        if whole[: len(given)] != given or (answer.startswith("é") and name == "unigram"):
            continue
        own = [*whole[len(given) :], end]
        found = reread(tokenizer, PROMPT, "prompt").generated(0, own, [end])
        assert (found.text, found.finished) == (answer, True)
        assert found.counts == {TEXT_DIFFERS: 0, RETOKENIZED: 0}
        assert captured(tokenizer, PROMPT, "prompt", found) == own


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["prepend", "phi3-like", "metaspace-always", "byte-level"])
def test_written_replies_have_the_tokens_that_were_generated(name: str, template: str) -> None:
    """Some templates write a space of their own before a reply."""
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = TEMPLATES[template]
    reply = Response("It is so.", finished=True)
    rows = captured(tokenizer, ASKED, "messages", reply)
    end = next(id_ for id_ in rows if id_ in tokenizer.all_special_ids or rows[-1] == id_)
    own = rows[: rows.index(end) + 1]
    found = reread(tokenizer, ASKED, "messages").generated(0, own, [end])
    assert found.counts == {TEXT_DIFFERS: 0, RETOKENIZED: 0}
    assert captured(tokenizer, ASKED, "messages", found)[: len(own)] == own


def test_an_answer_that_is_cut_inside_a_character_ends_before_it() -> None:
    tokenizer = TOKENIZERS["byte-level"]()
    own = tokenizer(" It is \U0001f600", add_special_tokens=False)["input_ids"][:-1]
    found = reread(tokenizer, PROMPT, "prompt").generated(0, own, [tokenizer.eos_token_id])
    assert (found.text, found.finished, found.counts[TEXT_DIFFERS]) == (" It is ", False, 0)
    rows = captured(tokenizer, PROMPT, "prompt", found)
    assert rows == own[: len(rows)]


def test_what_a_text_cannot_hold_is_counted_and_marked() -> None:
    tokenizer = TOKENIZERS["gpt4-like"]()
    tokenizer.chat_template = TEMPLATES["harmony"]
    end = tokenizer.convert_tokens_to_ids("<|return|>")
    text = "<|channel|>analysis<|message|>It is so.<|end|><|start|>assistant<|message|>It is."
    own = [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
    found = reread(tokenizer, ASKED, "messages").generated(0, own, [end])
    assert found.counts == {TEXT_DIFFERS: 1, RETOKENIZED: 0}
    letters = [id_ for c in "<|end|>" for id_ in tokenizer(c)["input_ids"]]
    found = reread(tokenizer, PROMPT, "prompt").generated(0, [*letters, end], [end])
    assert found.text == "<|end|>"  # letters, which a capture reads as the token
    assert found.counts[TEXT_DIFFERS] == 1
    spelled = [id_ for c in " It is" for id_ in tokenizer(c)["input_ids"]]
    found = reread(tokenizer, PROMPT, "prompt").generated(0, [*spelled, end], [end])
    assert found.text == " It is"
    assert found.counts == {TEXT_DIFFERS: 0, RETOKENIZED: 1}


def test_a_servers_answer_is_held_to_its_number_of_tokens() -> None:
    tokenizer = TOKENIZERS["prepend"]()
    tokenizer.chat_template = TEMPLATES["mistral"]
    rereading = reread(tokenizer, ASKED, "messages")
    own = captured(tokenizer, ASKED, "messages", Response("It is so.", finished=True))
    answer = Response(answer_text(tokenizer, own), finished=True)
    assert answer.text == " It is so."  # as a server decodes it behind the prompt
    found = rereading.served(0, answer, len(own))
    assert (found.text, found.counts) == ("It is so.", {LENGTH_DIFFERS: 0})
    assert rereading.served(0, answer, len(own) + 2).counts == {LENGTH_DIFFERS: 1}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_that_a_server_gives_apart_is_counted(field: str) -> None:
    served = object.__new__(_Served)
    served._rereading = None
    for apart, differs in (("It says so.", 1), ("", 0), (None, 0)):
        message = {"content": "It is.", field: apart}
        found = {
            "choices": [{"finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 9},
        }
        answer = read_answer(found, "chat", (), log_probs=False)
        assert served._response(0, answer).counts == {TEXT_DIFFERS: differs}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answers_text_is_that_of_its_tokens_bytes(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer("x It is so", add_special_tokens=False)["input_ids"]
    spelled = token_bytes(tokenizer)
    for first in range(len(ids)):
        text = answer_text(tokenizer, ids[first:])
        assert text.encode() == b"".join(spelled[id_] for id_ in ids[first:])
        stop = text[:2]
        ends = [StopTexts(tokenizer, [stop]).complete(ids[first:n]) for n in range(first + 1, 99)]
        assert ends[len(ids) - first - 1]  # a space at the start of an answer is found, too
