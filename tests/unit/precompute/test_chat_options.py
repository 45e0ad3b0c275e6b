"""What reaches the chat template, which replies are rows, and what is refused."""

import json
from hashlib import sha256

import numpy as np
import pytest
from helpers.chat_tokenizers import TEMPLATES, TOKENIZERS
from helpers.tiny import save_tiny, tiny_tokenizer, write_jsonl
from tokenizers import processors

from caskd.eval.inference.requests import question_text
from caskd.precompute import PrecomputeConfig, plan, precompute
from caskd.store.corpus import (
    ChatOptions,
    Columns,
    TextOptions,
    answer_ids,
    corpus_digest,
    decide_columns,
    given_chat_options,
    prompt_ids,
    reference_text,
    rendered_bos,
    tokenize_examples,
)
from caskd.store.errors import IdentityError, UsageError
from caskd.store.read import TeacherStore
from caskd.store.verify import verify_store

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for d in documents or [] %}<|im_start|>{{ d.text }}<|im_end|>\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<think>{{ c | tojson }}</think>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}
ASKED = [{"role": "user", "content": "What is it?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return TOKENIZERS["byte-level"]()


def chat(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


def tokenize(tokenizer, record, template=None, **chat_options):
    options = TextOptions(max_length=500, chat=ChatOptions(template=template, **chat_options))
    [example] = tokenize_examples(tokenizer, [record], Columns(), options, 0)
    rows = tokenizer.decode(example.token_ids[example.is_response == 1])
    return example, tokenizer.decode(example.token_ids), rows


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_documents_and_calls_reach_the_template(tokenizer, as_text):
    tokenizer.chat_template = TOOL_TEMPLATE
    messages = [
        *ASKED,
        CALL,
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4"},
    ]
    documents = [{"title": "t", "text": "It says"}]
    record = {"messages": messages, "tools": json.dumps(TOOLS) if as_text else TOOLS}
    record["documents"] = documents
    example, text, rows = tokenize(tokenizer, record)
    own = tokenizer.apply_chat_template(
        messages, tools=TOOLS, documents=documents, return_dict=True
    )["input_ids"]
    assert own[: len(example.token_ids)] == example.token_ids.tolist()
    assert "It says" in text
    assert rows == '<think>{"name": "f", "arguments": {}}</think><|im_end|>4<|im_end|>'


def test_tools_are_part_of_digests_and_records_without_them_keep_theirs():
    plain = {"messages": chat("a", "b")}
    digests = {
        corpus_digest(iter([record]), Columns())[0]
        for record in (plain, {**plain, "tools": None}, {**plain, "tools": []}, {**plain, "id": 1})
    }
    content = json.dumps({"messages": chat("a", "b"), "task": ""}, sort_keys=True).encode()
    assert digests == {sha256(len(content).to_bytes(8, "little") + content).hexdigest()}
    assert corpus_digest(iter([{**plain, "tools": TOOLS}]), Columns())[0] not in digests
    columns = Columns(kind="messages")
    assert question_text(plain, columns) == json.dumps(chat("a"), sort_keys=True)
    assert question_text({**plain, "tools": TOOLS}, columns) != question_text(plain, columns)


def test_a_list_of_text_parts_is_text_where_the_template_would_print_python(tokenizer):
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]
    record = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
    }
    for template in ("chatml", "llama3"):
        example, text, _ = tokenize(tokenizer, record, TEMPLATES[template])
        assert "What is it?" in text
        assert "type" not in text
        assert example.status == "ok"
    assert reference_text(
        {"messages": [*ASKED, {"role": "assistant", "content": parts}]}, Columns()
    )


def test_null_content_is_never_printed(tokenizer):
    record = {"messages": [*ASKED, CALL, *chat("a", "b")]}
    assert "None" not in tokenize(tokenizer, record, TEMPLATES["chatml"])[1]


def test_tool_calls_that_the_template_leaves_out_are_refused(tokenizer):
    messages = [*ASKED, {**CALL, "content": "so"}]
    for template in ("chatml", "gemma", "zephyr"):
        example, _, _ = tokenize(tokenizer, {"messages": messages}, TEMPLATES[template])
        assert example.status == "chat_refused"
        assert "tool_calls" in example.reason
    example, _, rows = tokenize(tokenizer, {"messages": messages}, TOOL_TEMPLATE)
    assert rows.startswith("so<think>")


@pytest.mark.parametrize("after", [[], [{"role": "tool", "content": "4"}]])
def test_a_tool_call_that_ends_with_its_own_token(tokenizer, after):
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.tool_calls %}"
        " to {{ m.tool_calls[0].name }}<|message|>{{ m.tool_calls[0].arguments | tojson }}<|end|>"
        "{% else %}<|message|>{{ m.content }}<|return|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    example, text, rows = tokenize(tokenizer, {"messages": [*ASKED, CALL, *after]}, template)
    assert (example.status, rows) == ("ok", " to f<|message|>{}<|end|>")
    assert text.endswith(rows)
    turns = [*ASKED, CALL, *after, {"role": "assistant", "content": "so"}]
    _, _, rows = tokenize(tokenizer, {"messages": turns}, template)
    assert rows == " to f<|message|>{}<|end|>so<|return|>"


def test_an_empty_list_of_tool_calls_is_none(tokenizer):
    template = (
        "{% for m in messages %}{{ m.role }}:{% if m.tool_calls is defined %}"
        "{{ raise_exception('one call, please') }}{% endif %}{{ m.content }}</s>{% endfor %}"
    )
    record = {"messages": [*ASKED, {"role": "assistant", "content": "so", "tool_calls": []}]}
    assert tokenize(tokenizer, record, template)[2] == "so</s>"


def test_a_reply_whose_end_merges_with_what_follows_keeps_its_own_tokens():
    tokenizer = TOKENIZERS["gpt4-like"]()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '\n# ' + m.role + ':\n' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}\n# assistant:\n{% endif %}"
    )
    messages = [*chat("What", "so"), {"role": "user", "content": "It"}]
    own = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    options = TextOptions(max_length=100)
    [example] = tokenize_examples(tokenizer, [{"messages": messages}], Columns(), options, 0)
    ids = example.token_ids.tolist()
    assert own[: len(ids)] != ids
    assert example.own_border
    assert tokenizer.decode(example.token_ids[example.is_response == 1]) == "so\n"


def test_a_reply_that_starts_is_a_row_where_its_prompt_alone_is_refused(tokenizer):
    template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nIt<|im_end|>\n{% endif %}"
        + TEMPLATES["chatml"]
    )
    record = {"messages": chat("What", "so", "It", "is")[1:]}
    example, _, rows = tokenize(tokenizer, record, template)
    assert (rows, example.num_context_turns) == ("so<|im_end|>is<|im_end|>", 0)


def test_only_the_last_turn(tokenizer):
    record = {"messages": chat("What", "It", "is", "so")}
    every, text, rows = tokenize(tokenizer, record, TEMPLATES["chatml"])
    last, same, only = tokenize(tokenizer, record, TEMPLATES["chatml"], turns="last")
    assert text == same
    assert (rows, only) == ("It<|im_end|>so<|im_end|>", "so<|im_end|>")
    assert every.token_ids.tolist() == last.token_ids.tolist()


def test_an_empty_think_block_is_context_unless_asked_for(tokenizer):
    record = {"messages": chat("What", "so")}
    _, text, rows = tokenize(tokenizer, record, TEMPLATES["qwen3"])
    assert rows == "so<|im_end|>"
    assert "<think>\n\n</think>\n\nso" in text
    _, _, rows = tokenize(tokenizer, record, TEMPLATES["qwen3"], template_tokens=True)
    assert rows == "<think>\n\n</think>\n\nso<|im_end|>"
    thought = {"messages": chat("What", "<think>\nIt is\n</think>\n\nso")}
    _, _, rows = tokenize(tokenizer, thought, TEMPLATES["qwen3"])
    assert rows == "<think>\nIt is\n</think>\n\nso<|im_end|>"


def test_template_arguments_reach_the_template(tokenizer):
    template = "{{ greeting }}" + TEMPLATES["chatml"]
    chosen = given_chat_options(arguments='{"greeting": "It is"}')
    record = {"messages": chat("What", "so")}
    assert tokenize(tokenizer, record, template, **chosen)[1].startswith("It is<")
    for wrong in ("x", "[]", '{"tools": []}'):
        with pytest.raises(UsageError, match="--template-arguments"):
            given_chat_options(arguments=wrong)
    with pytest.raises(UsageError, match="--chat-template /none"):
        given_chat_options("/none")


def test_an_assistant_that_starts_and_a_template_that_needs_a_query(tokenizer):
    record = {"messages": chat("What", "so", "It", "is")[1:]}
    _, _, rows = tokenize(tokenizer, record, TEMPLATES["chatml"])
    assert rows == "so<|im_end|>is<|im_end|>"
    query = (
        "{% if 'user' not in messages | map(attribute='role') %}"
        "{{ raise_exception('No user query found') }}{% endif %}" + TEMPLATES["chatml"]
    )
    example, _, rows = tokenize(tokenizer, record, query)
    assert (rows, example.num_context_turns) == ("is<|im_end|>", 1)


def test_options_of_a_question_follow_the_prompt(tokenizer):
    unigram = TOKENIZERS["metaspace-always"]()
    record = {"prompt": "What is it? ", "response": "A"}
    [first, *_] = answer_ids(unigram, record, Columns(), "A")
    assert unigram.convert_ids_to_tokens(first) in ("A", "<0x41>")
    record = {"messages": chat("What", "It")}
    unigram.chat_template = TEMPLATES["mistral"]
    example, _, _ = tokenize(unigram, record)
    assert (
        answer_ids(unigram, record, Columns(), "It")[0]
        == (example.token_ids[len(prompt_ids(unigram, record, Columns()))])
    )


def test_sharegpt_is_read_and_alpaca_is_refused_with_the_cure(tokenizer):
    record = {"conversations": [{"from": "human", "value": "It"}, {"from": "gpt", "value": "is"}]}
    assert tokenize(tokenizer, record, TEMPLATES["chatml"])[2] == "is<|im_end|>"
    named = {"messages": [{"role": "human", "content": "It"}, {"role": "gpt", "content": "is"}]}
    assert tokenize(tokenizer, named, TEMPLATES["chatml"])[2] == "is<|im_end|>"
    alpaca = {"instruction": "a", "output": "b"}
    with pytest.raises(UsageError, match="--prompt-column instruction --response-column output"):
        decide_columns(alpaca, Columns())
    with pytest.raises(UsageError, match=r"jq -c .*--data prompts.jsonl"):
        decide_columns({**alpaca, "input": "c"}, Columns())


def test_one_bos_whether_or_not_the_prompt_has_it():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    ids = {}
    for prompt in ("ab", "<s>ab"):
        record = {"prompt": prompt, "response": "cd"}
        options = TextOptions(max_length=50)
        [example] = tokenize_examples(tokenizer, [record], Columns(), options, 0)
        assert example.rendered_bos == prompt.startswith("<s>")
        assert rendered_bos(tokenizer, record, Columns(kind="prompt")) == example.rendered_bos
        assert prompt_ids(tokenizer, record, Columns()) == example.token_ids[:3].tolist()
        ids[prompt] = example.token_ids.tolist()
    assert ids["ab"] == ids["<s>ab"]


STRICT = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "{{ m.role + ':' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def config_of(tmp_path):
    teacher = save_tiny(tmp_path / "big")
    (tmp_path / "strict.jinja").write_text(STRICT)
    robot = {"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}]}
    records = [
        {"messages": chat("a", "b"), "mood": "x"},
        robot,
        {"messages": chat("c", "d")},
        robot,
    ]
    data = write_jsonl(tmp_path / "data.jsonl", records)

    def build(**changes):
        base = {
            "teacher": str(teacher), "data": (str(data),), "store": str(tmp_path / "store"),
            "top_k": 4, "shard_rows": 64, "device": "cpu",
            "chat_template": str(tmp_path / "strict.jinja"),
        }  # fmt: skip
        return PrecomputeConfig(**{**base, **changes})

    return build


def test_refused_conversations_are_all_counted_before_the_plan_stops(config_of, tmp_path):
    with pytest.raises(UsageError, match=r"2 of 4 examples .* record 1; .*--on-bad-chat skip"):
        plan(config_of())
    assert not (tmp_path / "store").exists()


def test_a_teacher_without_a_template_is_refused_with_the_cure(config_of):
    with pytest.raises(UsageError, match=r"--teacher .*big: .*--chat-template FILE"):
        plan(config_of(chat_template=None))


def test_a_store_with_refused_conversations_is_format_2(config_of, tmp_path, capsys):
    precompute(config_of(on_bad_chat="skip"))
    assert "'mood'" in capsys.readouterr().out
    store = TeacherStore.open(tmp_path / "store")
    assert (store.spec.format_version, store.spec.optional_arrays) == (2, ())
    assert store.index.status.tolist() == [0, 7, 0, 7]
    assert store.seal["statuses"] == {"chat_refused": 2, "ok": 2}
    assert store.seal["counts"] == {"context_turns": 0, "own_borders": 0, "rendered_bos": 0}
    text = store.spec.identity["text"]
    assert (text["rule"], text["template"], text["chat_turns"]) == (2, STRICT, "all")
    assert text["template_arguments"] == {}
    assert verify_store(tmp_path / "store", full=True).ok
    assert np.isfinite(store.read([0, 1, 2]).column("logsumexp")).all()


def test_every_other_exact_store_is_format_1(config_of, tmp_path):
    data = write_jsonl(tmp_path / "good.jsonl", [{"messages": chat("a", "b")}])
    precompute(config_of(data=(str(data),), encoding="exact"))
    content = json.loads((tmp_path / "store" / "store.json").read_text())
    assert content["format_version"] == 1
    assert "optional_arrays" not in content
    assert "counts" not in json.loads((tmp_path / "store" / "seal.json").read_text())


def test_a_capture_of_rule_1_is_not_continued(config_of, tmp_path, monkeypatch):
    data = write_jsonl(tmp_path / "good.jsonl", [{"messages": chat("a", "b")}])
    config = config_of(data=(str(data),))
    with monkeypatch.context() as patch:
        patch.setattr("caskd.precompute.planning.identity.TEXT_RULE", 1)
        plan(config)
    with pytest.raises(IdentityError, match=r"identity.text.rule is 1 there.* rule 2.*--store"):
        plan(config)
