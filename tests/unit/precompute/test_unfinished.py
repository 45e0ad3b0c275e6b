"""Records with `finished: false`: left out, or kept without the end that nobody has written."""

from typing import Any

import pytest
from helpers.chat_tokenizers import TEMPLATES, TOKENIZERS
from helpers.tiny import tiny_tokenizer

from caskd.models.engines import ServerError, http_client
from caskd.store.corpus import (
    ChatOptions,
    Columns,
    TextOptions,
    TokenizedExample,
    corpus_digest,
    tokenize_examples,
)

TURNS = [
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "uno"},
    {"role": "user", "content": "two"}, {"role": "assistant", "content": "due uno"},
]  # fmt: skip


def tokenized(
    tokenizer: Any, record: dict[str, Any], keep: bool = True, template: str | None = None
) -> tuple[TokenizedExample, str]:
    """The example, and the text of its rows with special tokens."""
    chat = ChatOptions(template=template)
    options = TextOptions(max_length=500, chat=chat, keep_unfinished=keep)
    [example] = tokenize_examples(tokenizer, [record], Columns(), options, 0)
    return example, tokenizer.decode(example.token_ids[example.is_response == 1])


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr"])
def test_an_unfinished_reply_has_no_end_and_earlier_ones_keep_theirs(name: str) -> None:
    tokenizer = TOKENIZERS["byte-level"]()
    finished, whole = tokenized(tokenizer, {"messages": TURNS}, template=TEMPLATES[name])
    record = {"messages": TURNS, "finished": False}
    example, rows = tokenized(tokenizer, record, template=TEMPLATES[name])
    assert (example.status, example.kept_unfinished) == ("ok", True)
    assert rows.endswith("due uno")
    assert rows == whole[: whole.rindex("due uno") + len("due uno")]
    assert len(rows) < len(whole)
    assert finished.token_ids[: len(example.token_ids)].tolist() == example.token_ids.tolist()
    left_out, _ = tokenized(tokenizer, record, keep=False, template=TEMPLATES[name])
    assert (left_out.status, len(left_out.token_ids)) == ("unfinished", 0)


def test_an_unfinished_reply_that_the_template_changes_is_refused() -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content | upper }}\n{% endfor %}"
    record = {"messages": TURNS, "finished": False}
    example, _ = tokenized(TOKENIZERS["byte-level"](), record, template=template)
    assert example.status == "chat_refused"


@pytest.mark.parametrize("value", [True, None, "false", 0])
def test_only_false_is_unfinished(value: Any) -> None:
    tokenizer = tiny_tokenizer()
    record = {"prompt": "ab", "response": "cd"}
    plain, _ = tokenized(tokenizer, record)
    other, _ = tokenized(tokenizer, {**record, "finished": value}, keep=False)
    assert plain.token_ids.tolist() == other.token_ids.tolist()
    assert plain.token_ids[-1] == tokenizer.eos_token_id
    kept, _ = tokenized(tokenizer, {**record, "finished": False})
    assert kept.token_ids.tolist() == plain.token_ids.tolist()[:-1]


def test_the_corpus_digest_knows_what_is_unfinished() -> None:
    record = {"prompt": "ab", "response": "cd"}
    digests = [
        corpus_digest(iter([{**record, **more}]), Columns())[0]
        for more in ({}, {"finished": True}, {"finished": False})
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_request_that_waits_for_a_server_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.001)
    server = http_client.HttpServer("http://127.0.0.1:9")
    for _ in range(2):
        with pytest.raises(ServerError):
            server.ask("/v1/models")
    server.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "http://127.0.0.1:9" in lines[0]
    assert f"{http_client.ATTEMPTS} times" in lines[0]
