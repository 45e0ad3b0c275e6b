"""From records to tokens: rows, prompts and every status.

It tests `store/corpus/tokens.py`, and stands here because a real tokenizer comes from transformers,
which imports torch: no test of `tests/unit/store` does.
"""

import numpy as np
import pytest
from helpers.tiny import tiny_tokenizer
from tokenizers import AddedToken, processors

from caskd.store.corpus import (
    Columns,
    TextOptions,
    prompt_ids,
    reference_text,
    row_labels,
    tokenize_examples,
)
from caskd.store.errors import UsageError

EOS = "</s>"
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# Replies of earlier turns are shortened once a later turn exists, as reasoning models do.
FORGETFUL_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' }}"
    "{{ m['content'] if loop.last else m['content'][:1] }}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
MARKED_TEMPLATE = """{%- for m in messages %}
{{- m['role'] + ':' }}
    {%- if m['role'] == 'assistant' %}
        {% generation %}
{{ m['content'] if loop.last else m['content'][:1] }}{{ '</s>' }}
        {%- endgeneration %}
    {%- else %}
{{- m['content'] + '</s>' }}
    {%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""
CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "so"},
    {"role": "assistant", "content": "no."},
    {"role": "user", "content": "bye"},
]


def with_bos():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def text_of(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens([int(i) for i in ids]))


def run(tokenizer, record, **options):
    options = TextOptions(**{"max_length": 100, **options})
    [example] = tokenize_examples(tokenizer, [record], Columns(), options, 3)
    assert len(example.token_ids) == len(example.is_response)
    assert example.token_ids.dtype == np.uint32
    assert example.is_response.dtype == np.uint8
    marked = text_of(tokenizer, example.token_ids[example.is_response == 1])
    return example, text_of(tokenizer, example.token_ids), marked


def rows(tokenizer, example):
    return text_of(tokenizer, row_labels(example.token_ids, example.is_response))


def test_prompt_and_response_with_eos_as_a_row():
    tokenizer = tiny_tokenizer()
    example, text, response = run(tokenizer, {"prompt": "ab", "response": "cd", "task": "t"})
    assert (text, response, example.status) == ("abcd</s>", "cd</s>", "ok")
    assert (example.source_index, example.task) == (3, "t")
    assert rows(tokenizer, example) == "cd</s>"


def test_no_eos():
    _, text, _ = run(tiny_tokenizer(), {"prompt": "ab", "response": "cd"}, eos=False)
    assert text == "abcd"


def test_eos_is_not_doubled():
    _, text, _ = run(tiny_tokenizer(), {"prompt": "ab", "response": "cd</s>"})
    assert text == "abcd</s>"


@pytest.mark.parametrize(
    ("record", "text", "marked"),
    [
        ({"prompt": "ab", "response": "cd"}, "<s>abcd</s>", "cd</s>"),
        ({"prompt": "", "response": "cd"}, "<s>cd</s>", "cd</s>"),
        ({"text": "cd"}, "<s>cd</s>", "cd</s>"),
    ],
)
def test_bos_as_the_tokenizer_adds_it_and_its_eos_is_not_taken(record, text, marked):
    assert run(with_bos(), record)[1:] == (text, marked)


def test_without_prompt_and_bos_the_first_token_has_no_row():
    tokenizer = tiny_tokenizer()
    example, text, marked = run(tokenizer, {"text": "cd"})
    assert (text, marked, rows(tokenizer, example)) == ("cd</s>", "cd</s>", "d</s>")


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE])
def test_messages_mask_the_replies_with_their_eos_and_stop_after_the_last(template):
    tokenizer = with_template(template)
    conversation = CHAT[2:4]
    _, text, marked = run(tokenizer, {"messages": conversation})
    assert text == "user:so</s>\nassistant:no.</s>"
    assert marked == "no.</s>"


def test_several_assistant_turns():
    _, text, marked = run(with_template(PLAIN_TEMPLATE), {"messages": CHAT})
    assert text == "user:hi</s>\nassistant:yes</s>\nuser:so</s>\nassistant:no.</s>"
    assert marked == "yes</s>no.</s>"


def test_a_turn_whose_prefix_renders_differently_is_context_and_counted():
    example, text, marked = run(with_template(FORGETFUL_TEMPLATE), {"messages": CHAT[:4]})
    assert text == "user:h</s>\nassistant:y</s>\nuser:s</s>\nassistant:no.</s>"
    assert (marked, example.num_context_turns) == ("no.</s>", 1)


def test_the_template_s_own_marks_need_no_matching_prefixes():
    tokenizer = with_template(MARKED_TEMPLATE)
    example, text, marked = run(tokenizer, {"messages": CHAT})
    assert text == "user:hi</s>\nassistant:y</s>\nuser:so</s>\nassistant:n</s>"
    assert marked == "y</s>n</s>"
    own = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    length = len(example.token_ids)
    assert own["input_ids"][:length] == example.token_ids.tolist()
    assert own["assistant_masks"][:length] == example.is_response.tolist()
    assert not any(own["assistant_masks"][length:])


SYSTEM = {"role": "system", "content": "be good"}
TOOL = {"role": "tool", "content": "12 degrees"}


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE])
def test_a_system_prompt_and_the_answer_of_a_tool_are_context(template):
    conversation = [SYSTEM, CHAT[0], CHAT[1], TOOL, CHAT[3]]
    template = template.replace("m['content'] if loop.last else m['content'][:1]", "m['content']")
    _, text, marked = run(with_template(template), {"messages": conversation})
    assert text == (
        "system:be good</s>\nuser:hi</s>\nassistant:yes</s>\ntool:12 degrees</s>\nassistant:no.</s>"
    )
    assert marked == "yes</s>no.</s>"


def test_a_call_of_a_tool_without_text_reaches_the_template():
    template = PLAIN_TEMPLATE.replace("m['content']", "(m['content'] or m['tool_calls'][0].name)")
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "weather"}]}
    _, text, marked = run(with_template(template), {"messages": [CHAT[0], call, TOOL, CHAT[3]]})
    assert text.startswith("user:hi</s>\nassistant:weather</s>\ntool:12 degrees")
    assert marked == "weather</s>no.</s>"


def test_a_message_without_content_and_calls_is_refused():
    with pytest.raises(UsageError, match=r"record 3: a message is .*text in 'role' and"):
        run(with_template(PLAIN_TEMPLATE), {"messages": [{"role": "user", "content": None}]})


def test_a_rejected_conversation_has_a_status_and_a_reason():
    strict = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}"
        "{{ raise_exception('no tools here') }}{% endif %}{% endfor %}" + PLAIN_TEMPLATE
    )
    example, text, _ = run(with_template(strict), {"messages": [CHAT[0], CHAT[1], TOOL, CHAT[3]]})
    assert (example.status, text) == ("chat_refused", "")
    assert "(no tools here)" in example.reason
    assert "\n" not in example.reason
    assert run(with_template(strict), {"messages": CHAT})[2] == "yes</s>no.</s>"


def test_full_length_counts_what_a_policy_took():
    record = {"prompt": "ab", "response": "cdef"}
    for on_long, tokens in (("truncate", 5), ("skip", 0), ("error", 0)):
        example, _, _ = run(tiny_tokenizer(), record, max_length=5, on_long=on_long)
        assert (len(example.token_ids), example.full_length) == (tokens, 7)


def test_a_turn_that_ends_with_another_special_token():
    tokenizer = with_template(PLAIN_TEMPLATE.replace("</s>", "<end>"))
    tokenizer.add_tokens([AddedToken("<end>", special=True)], special_tokens=True)
    _, text, marked = run(tokenizer, {"messages": CHAT[:2]})
    assert (text, marked) == ("user:hi<end>\nassistant:yes<end>", "yes<end>")


@pytest.mark.parametrize(
    ("tokenizer", "record", "before"),
    [
        (tiny_tokenizer(), {"prompt": "ab", "response": "cd"}, "ab"),
        (with_bos(), {"prompt": "ab", "response": "cd"}, "<s>ab"),
        (with_bos(), {"prompt": "", "response": "cd"}, "<s>"),
        (with_bos(), {"text": "cd"}, "<s>"),
        (tiny_tokenizer(), {"text": "cd"}, ""),
        (with_template(PLAIN_TEMPLATE), {"messages": CHAT[:2]}, "user:hi</s>\nassistant:"),
        (
            with_template(PLAIN_TEMPLATE),
            {"messages": CHAT},
            "user:hi</s>\nassistant:yes</s>\nuser:so</s>\nassistant:",
        ),
        (
            with_template(MARKED_TEMPLATE),
            {"messages": CHAT},
            "user:hi</s>\nassistant:y</s>\nuser:so</s>\nassistant:",
        ),
    ],
)
def test_prompt_ids_are_the_exact_prefix_of_what_is_captured(tokenizer, record, before):
    example, _, _ = run(tokenizer, record)
    prompt = prompt_ids(tokenizer, record, Columns())
    assert text_of(tokenizer, prompt) == before
    assert example.token_ids[: len(prompt)].tolist() == prompt
    # Not one token more or less: the next one is the last reply's first.
    assert example.is_response[len(prompt) :].all()
    assert not len(prompt) or not example.is_response[len(prompt) - 1]


def test_reference_text():
    assert reference_text({"prompt": "a", "response": "b"}, Columns()) == "b"
    assert reference_text({"text": "b"}, Columns()) == "b"
    assert reference_text({"messages": CHAT}, Columns()) == "no."


@pytest.mark.parametrize(
    ("options", "status", "text", "marked"),
    [
        ({"max_length": 6}, "ok", "abcde</s>", "cde</s>"),
        ({"max_length": 5, "on_long": "truncate"}, "truncated", "abcde", "cde"),
        ({"max_length": 3, "on_long": "truncate"}, "truncated", "abc", "c"),
        ({"max_length": 2, "on_long": "truncate"}, "too_long", "", ""),
        ({"max_length": 5, "on_long": "skip"}, "too_long", "", ""),
        ({"vocab_size": 8}, "out_of_vocabulary", "", ""),
        ({"vocab_size": 9}, "ok", "abcde</s>", "cde</s>"),
    ],
)
def test_statuses(options, status, text, marked):
    tokenizer = tiny_tokenizer()
    example, got_text, got_marked = run(tokenizer, {"prompt": "ab", "response": "cde"}, **options)
    assert (example.status, got_text, got_marked) == (status, text, marked)


@pytest.mark.parametrize(
    ("tokenizer", "record"),
    [
        (tiny_tokenizer(), {"prompt": "ab", "response": ""}),
        (tiny_tokenizer(), {"text": ""}),
        (with_template(PLAIN_TEMPLATE), {"messages": CHAT[:1]}),
        (with_template(PLAIN_TEMPLATE), {"messages": []}),
    ],
)
def test_nothing_to_predict_is_empty(tokenizer, record):
    example, text, _ = run(tokenizer, record)
    assert (example.status, text) == ("empty", "")


def test_one_token_without_a_prefix_is_empty():
    assert run(tiny_tokenizer(), {"text": "c"}, eos=False)[0].status == "empty"


@pytest.mark.parametrize(
    ("record", "options", "said"),
    [
        ({"prompt": "ab", "answer": "cde"}, {}, "record 3: .*--response-column"),
        ({"messages": [{"role": "user"}]}, {}, "'role' and"),
        ({"messages": ["hi"]}, {}, "'role' and"),
        ({"messages": "hi"}, {}, "expected a list of messages"),
    ],
)
def test_mistakes_are_one_line(record, options, said):
    with pytest.raises(UsageError, match=said) as caught:
        run(tiny_tokenizer(), record, **options)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_eos_is_refused_unless_none_is_wanted():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="--no-eos"):
        run(tokenizer, {"prompt": "ab", "response": "cd"})
    assert run(tokenizer, {"prompt": "ab", "response": "cd"}, eos=False)[1] == "abcd"
