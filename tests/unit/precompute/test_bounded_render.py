"""Chat templates of strangers: bounded, and every error of theirs is one."""

import resource

import pytest
from helpers.tiny import tiny_tokenizer

from caskd.store.corpus import bounded_render
from caskd.store.corpus.bounded_render import TemplateError, render_template
from caskd.store.errors import UsageError

MESSAGES = [{"role": "user", "content": "hi"}]


def render(template: str) -> str:
    return render_template(tiny_tokenizer(), MESSAGES, {"chat_template": template})


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ 'x'|center(9000000000) }}",
        "{{ '%9000000000d' % 1 }}",
        "{{ (range(99999)|list * 9999)|join }}",
        "{{ messages|tojson(indent=99999999999) }}",
        "{{ 9 ** 9 ** 9 }}",
    ],
)
def test_no_template_takes_all_time_or_memory(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_render, "MAX_SECONDS", 0.2)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UsageError, match="--chat-template FILE"):
        render(template)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages.foo.bar }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 + 'a' }}",
        "{{ 1 / 0 }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
        "{% if %}",
        "{% include 'x' %}",
    ],
)
def test_every_error_of_a_template_is_a_refusal(template: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(template)
    assert "\n" not in str(caught.value)


def test_double_stars_of_a_call_are_no_power() -> None:
    assert render("{{ dict(**{'a': 1}) }}") == "{'a': 1}"
