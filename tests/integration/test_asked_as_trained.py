"""A model that caskd exported is asked as it was trained; a flag that contradicts is refused."""

from pathlib import Path
from typing import Any

import pytest
from helpers.chat_models import ANSWERS, TEMPLATE, chat, save_teacher
from helpers.tiny import save_tiny, tiny_tokenizer, write_jsonl
from tokenizers import processors
from transformers import AutoTokenizer

from caskd.eval import PredictConfig, predict
from caskd.models import ModelText
from caskd.store.errors import IdentityError, UsageError

THINKING = TEMPLATE.replace("{{ m['content'] }}", "{{ mood or '' }}{{ m['content'] }}")


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that records that it was trained with template arguments."""
    folder = save_teacher(tmp_path_factory.mktemp("moody") / "moody", "{{ eos_token }}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = THINKING.replace("END", "{{ eos_token }}")
    tokenizer.save_pretrained(folder)
    text = ModelText(
        rule=2, template_arguments={"mood": "c"}, chat_turns="all", template_tokens=True
    )
    (folder / "caskd_text.json").write_bytes(text.to_bytes())
    return folder


def asked(root: Path, model: Path, name: str, **options: Any) -> Any:
    write_jsonl(root / "ask.jsonl", [chat(*pair) for pair in ANSWERS.items()])
    given = {"max_new_tokens": 2, "device": "cpu", "batch_size": 1, **options}
    data = (str(root / "ask.jsonl"),)
    out = str(root / f"{name}.parquet")
    return predict(PredictConfig(model=str(model), data=data, out=out, **given))


def test_predict_asks_a_model_as_it_was_trained(moody: Path, tmp_path: Path) -> None:
    found = asked(tmp_path, moody, "own")
    assert found.metadata["text"] == {
        "rule": 2, "template": None, "template_arguments": {"mood": "c"}, "template_tokens": True
    }  # fmt: skip
    (moody / "same.jinja").write_text(THINKING.replace("END", "{{ eos_token }}"))
    same = asked(
        tmp_path,
        moody,
        "same",
        template_arguments='{"mood":"c"}',
        chat_template=str(moody / "same.jinja"),
        train_template_tokens=True,
    )
    assert same.strings("prompt_digest") == found.strings("prompt_digest")
    assert same.metadata["text"] == found.metadata["text"]
    plain = asked(tmp_path, save_teacher(tmp_path / "teacher", "{{ eos_token }}"), "plain")
    assert plain.strings("prompt_digest") != found.strings("prompt_digest")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"template_arguments": "{}"}, ["--template-arguments", "{}", '{"mood": "c"}']),
        ({"chat_template": "other.jinja"}, ["--chat-template", "'other'", "sha256"]),
    ],
)
def test_a_flag_that_contradicts_the_model_is_exit_3(
    moody: Path, tmp_path: Path, options: dict[str, Any], facts: list[str]
) -> None:
    if "chat_template" in options:
        (tmp_path / "other.jinja").write_text("other")
        options = {"chat_template": str(tmp_path / "other.jinja")}
    with pytest.raises(IdentityError) as caught:
        asked(tmp_path, moody, "contradicts", **options)
    assert caught.value.exit_code == 3
    for fact in facts:
        assert fact in str(caught.value)


def test_template_tokens_that_were_not_trained_are_exit_3(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "model", "{{ eos_token }}")
    (folder / "caskd_text.json").write_bytes(ModelText(rule=2, chat_turns="all").to_bytes())
    with pytest.raises(IdentityError, match=r"--train-template-tokens is True, .* False"):
        asked(tmp_path, folder, "tokens", train_template_tokens=True)


@pytest.mark.parametrize(
    ("content", "error", "fact"),
    [
        ("{", UsageError, "caskd_text.json cannot be read"),
        ("[" * 100_000, UsageError, "caskd_text.json cannot be read"),
        ('{"rule": "2", "template_arguments": {}, "chat_turns": null}', UsageError, "type"),
        ('{"rule": 9, "template_arguments": {}, "chat_turns": "all"}', IdentityError, "rule 9"),
    ],
)
def test_a_damaged_or_newer_text_file_is_one_line(
    tmp_path: Path, content: str, error: type[Exception], fact: str
) -> None:
    folder = save_teacher(tmp_path / "model", "{{ eos_token }}")
    (folder / "caskd_text.json").write_text(content)
    with pytest.raises(error, match=fact) as caught:
        asked(tmp_path, folder, "damaged")
    assert "\n" not in str(caught.value)


def test_flags_of_conversations_beside_prompts_are_refused(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", "{{ eos_token }}")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a", "response": "b"}])
    with pytest.raises(UsageError, match="--template-arguments: the data has prompt records"):
        predict(
            PredictConfig(
                model=str(teacher),
                data=(str(tmp_path / "prompts.jsonl"),),
                out=str(tmp_path / "p.parquet"),
                template_arguments="{}",
                device="cpu",
            )
        )


def test_predict_counts_prompts_that_came_with_bos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(save_tiny(tmp_path / "model"))
    records = [{"prompt": prompt, "response": "b"} for prompt in ("a", "<s>a", "<s>b")]
    data = (str(write_jsonl(tmp_path / "prompts.jsonl", records)),)
    out = str(tmp_path / "p.parquet")
    config = PredictConfig(
        model=str(tmp_path / "model"), data=data, out=out, device="cpu", max_new_tokens=1
    )
    found = predict(config)
    assert found is not None
    first, second, _ = found.strings("prompt_digest")
    assert first == second
    assert "2 prompts came rendered with BOS" in capsys.readouterr().out
