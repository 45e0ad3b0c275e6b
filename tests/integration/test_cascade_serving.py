"""From predictions to a cascade at work: it answers as it was measured to."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.cascades import join_files
from helpers.tiny import ragged_records, save_tiny, tiny_tokenizer, write_jsonl

from caskd.cli.main import main
from caskd.eval import Cascade, PredictConfig, predict
from caskd.eval.answers import read_predictions
from caskd.eval.tasks import TASKS, Task
from caskd.models import ModelText
from caskd.store.errors import IdentityError, UsageError

RECORDS = ragged_records(40)
PROMPTS = [record["prompt"] for record in RECORDS]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two tiny models, their predictions, and the folder that holds all of it.

    What the large model answers is right, so that there is something to defer for.
    """
    folder = tmp_path_factory.mktemp("cascade")
    for name, seed in (("small", 4), ("large", 9)):
        save_tiny(folder / name, seed=seed, tie=False)
    told = predicted(folder, "large", RECORDS, "told.parquet").strings("text")
    records = [{**record, "response": text} for record, text in zip(RECORDS, told, strict=True)]
    for name in ("small", "large"):
        predicted(folder, name, records, f"{name}.parquet")
    return folder


def predicted(folder, name, records, out, **options):
    data = write_jsonl(folder / f"{out}.jsonl", records)
    return predict(
        PredictConfig(
            model=str(folder / name),
            data=(str(data),),
            out=str(folder / out),
            **{"max_new_tokens": 12, **options},
        )
    )


@pytest.fixture
def evaluated(measured, tmp_path):
    """Choose an operating point; returns the cascade.json."""

    def run(*words):
        out = tmp_path / "report"
        files = [str(measured / f"{name}.parquet") for name in ("small", "large")]
        words = ("--small", files[0], "--large", files[1], "--out", str(out), *words)
        assert main(["eval", *words]) == 0
        return out / "cascade.json"

    return run


def models(measured):
    return {"small": str(measured / "small"), "large": str(measured / "large"), "device": "cpu"}


def test_it_answers_as_it_was_measured(measured, evaluated):
    rules = ("--rule", "average", "--operating-point", "deferral_rate<=0.5")
    cascade = Cascade.load(str(evaluated(*rules)), **models(measured), batch_size=7)
    answers = cascade.answer(PROMPTS)
    pair = join_files(*(str(measured / f"{name}.parquet") for name in ("small", "large")))
    texts = {"small": pair.small.strings("text"), "large": pair.large.strings("text")}
    score = pair.score("average")
    np.testing.assert_allclose([a.deferral_score for a in answers], score, atol=1e-4)
    clear = np.abs(score - cascade.threshold) > 1e-3  # not the one at the threshold itself
    assert clear.sum() >= 38
    expected = np.where(score >= cascade.threshold, "large", "small")
    assert 0 < (expected == "large").sum() < 40
    for place, answer in enumerate(answers):
        assert answer.text == texts[answer.answered_by][place]
        if clear[place]:
            assert answer.answered_by == expected[place]
    assert cascade.expected["deferral_rate"]["mean"] == (expected == "large").mean()
    assert cascade.answer([]) == []


def test_any_function_may_be_the_large_model(measured, evaluated):
    file = str(evaluated("--rule", "sum", "--operating-point", "deferral_rate<=0.4"))
    asked = []

    def large(prompts):
        asked.extend(prompts)
        return [f"large: {prompt}" for prompt in prompts]

    cascade = Cascade.load(file, small=str(measured / "small"), large=large, device="cpu")
    answers = cascade.answer(PROMPTS)
    deferred = [prompt for prompt, a in zip(PROMPTS, answers, strict=True)
                if a.answered_by == "large"]  # fmt: skip
    assert asked == deferred
    assert 0 < len(deferred) < 40
    assert [a.text for a in answers if a.answered_by == "large"] == [
        f"large: {p}" for p in deferred
    ]
    short = Cascade.load(file, small=str(measured / "small"), large=lambda _: [], device="cpu")
    with pytest.raises(UsageError, match="large model: returned 0 answers"):
        short.answer(PROMPTS)


def test_a_router_on_the_prompt_spares_the_small_model(measured, evaluated, monkeypatch):
    file = evaluated("--rule", "average", "--operating-point", "deferral_rate<=0.5")
    fields = json.loads(file.read_text())
    size = 512
    router = {"kind": "prompt-router", "mean": [0.0] * size, "scale": [1.0] * size,
              "layers": [[[[float(i)] for i in range(size)], [0.0]]]}  # fmt: skip
    file.write_text(json.dumps({**fields, "rule": "prompt-router", "router": router,
                                "threshold": 1.0}))  # fmt: skip
    cascade = Cascade.load(str(file), **models(measured))
    seen = []
    decode = cascade._decode
    monkeypatch.setattr(
        cascade, "_decode", lambda asked, tasks: seen.extend(asked) or decode(asked, tasks)
    )
    answers = cascade.answer(PROMPTS)
    assert seen == [p for p, a in zip(PROMPTS, answers, strict=True) if a.answered_by == "small"]
    assert len(seen) < 40


@pytest.fixture(scope="module")
def by_task(measured):
    """Predictions of another limit for each model, and of two tasks with other stop texts."""
    letter = max("abcdefghij", key="".join(predicted_texts(measured)).count)
    tasks = {"stopped": Task("chrf", stop=(letter,)), "free": Task("chrf")}
    records = [{**one, "task": ("stopped", "free")[n % 2]} for n, one in enumerate(RECORDS)]
    with pytest.MonkeyPatch.context() as patch:
        for name, task in tasks.items():
            patch.setitem(TASKS, name, task)
        files = [
            predicted(measured, name, records, f"tasks-{name}.parquet", max_new_tokens=limit)
            for name, limit in (("small", 4), ("large", 12))
        ]
    return letter, [one["task"] for one in records], *files


def predicted_texts(folder):
    return read_predictions(str(folder / "small.parquet")).strings("text")


@pytest.mark.slow
def test_each_model_answers_with_its_own_limit_and_the_stop_texts_of_the_task(
    measured, by_task, tmp_path, capsys
):
    letter, tasks, small, large = by_task
    words = [f"--{name}={measured / f'tasks-{name}.parquet'}" for name in ("small", "large")]
    point = ("--operating-point", "deferral_rate<=1", "--rule", "average")
    assert main(["eval", *words, "--out", str(tmp_path / "r"), *point]) == 0
    file = tmp_path / "r" / "cascade.json"
    fields = json.loads(file.read_text())
    assert fields["decoding"]["max_new_tokens"] == 4
    assert fields["large_decoding"]["stop_by_task"] == {"stopped": [letter], "free": []}
    assert set(tasks) == {"stopped", "free"}
    lists = small.columns.column("token_logprobs").to_pylist()
    assert any(len(one) < 4 for one in lists)  # a stop text ended some
    score = [-np.mean(one) for one in lists]
    for threshold, stored in ((1e9, small), (-1e9, large)):
        file.write_text(json.dumps({**fields, "threshold": threshold}))
        cascade = Cascade.load(str(file), **models(measured))
        answers = cascade.answer(PROMPTS, tasks)
        assert [one.text for one in answers] == stored.strings("text")
        np.testing.assert_allclose([one.deferral_score for one in answers], score, atol=1e-4)
    with pytest.raises(UsageError, match=rf"tasks: .*stopped: \['{letter}'\].*tasks=\["):
        cascade.answer(PROMPTS)
    with pytest.raises(UsageError, match=r"'other'.*free, stopped"):
        cascade.answer(["a"], ["other"])
    with pytest.raises(UsageError, match="1 for 2 prompts"):
        cascade.answer(["a", "b"], ["free"])
    capsys.readouterr()
    file.write_text(json.dumps({**fields, "version": 1}))
    Cascade.load(str(file), **models(measured))
    assert "version 1" in capsys.readouterr().out
    odd = {**fields["decoding"], "stop_ids": [7]}
    file.write_text(json.dumps({**fields, "decoding": odd}))
    with pytest.raises(IdentityError, match=r"stop_ids is \[2\]; expected \[7\]"):
        Cascade.load(str(file), **models(measured))


def test_another_model_is_refused(measured, evaluated):
    file = str(evaluated("--operating-point", "deferral_rate<=0.5"))
    swapped = {"small": str(measured / "large"), "large": str(measured / "small"), "device": "cpu"}
    with pytest.raises(
        IdentityError, match=r"weights_digest is \w+; expected \w+, .*the cascade was measured"
    ):
        Cascade.load(file, **swapped)
    fields = json.loads(Path(file).read_text())
    assert fields["text"]["small"]["rule"] == fields["text"]["large"]["rule"] == 2
    older = Path(file).with_name("older.json")
    older.write_text(json.dumps({key: fields[key] for key in fields if key != "text"}))
    with pytest.raises(IdentityError, match=r"measured with text rule 1.* rule 2"):
        Cascade.load(str(older), **models(measured))
    with pytest.raises(UsageError, match="prompt 1: is empty"):
        Cascade.load(file, **models(measured)).answer(["a", ""])


TEMPLATE = (
    "{% for m in messages %}{{ mood or '' }}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.slow
def test_conversations_are_rendered_as_they_were_trained_and_measured(tmp_path):
    for name, seed in (("small", 4), ("large", 9)):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(save_tiny(tmp_path / name, seed=seed, tie=False))
    text = ModelText(rule=2, template_arguments={"mood": "c"}, chat_turns="all")
    (tmp_path / "small" / "caskd_text.json").write_bytes(text.to_bytes())
    turns = [[{"role": "user", "content": f"a{n}"}] for n in range(8)]
    records = [{"messages": [*turn, {"role": "assistant", "content": "b"}]} for turn in turns]
    files = []
    mood = '{"mood": "c"}'
    for name, given in (("small", {}), ("large", {"template_arguments": mood})):
        predicted(tmp_path, name, records, f"{name}.parquet", **given)
        files.append(f"--{name}={tmp_path / name}.parquet")
    out = tmp_path / "report"
    point = ("--operating-point", "deferral_rate<=1.0", "--rule", "average")
    assert main(["eval", *files, "--out", str(out), *point]) == 0
    file = str(out / "cascade.json")
    small = read_predictions(str(tmp_path / "small.parquet"))
    assert small.metadata["text"]["template_arguments"] == {"mood": "c"}
    paths = {"small": str(tmp_path / "small"), "device": "cpu"}
    given = {"large": lambda asked: ["b"] * len(asked), **paths}
    cascade = Cascade.load(file, **given, template_arguments=mood)
    cascade.threshold = float("inf")
    assert [a.text for a in cascade.answer(turns)] == small.strings("text")
    with pytest.raises(IdentityError, match=r'template_arguments is \{\}, .*\{"mood": "c"\}'):
        Cascade.load(file, **given, template_arguments="{}")
    other = ModelText(rule=2, template_arguments={"mood": "d"}, chat_turns="all")
    (tmp_path / "small" / "caskd_text.json").write_bytes(other.to_bytes())
    with pytest.raises(IdentityError, match=r'small.arguments is \{"mood": "c"\}.*\{"mood": "d"\}'):
        Cascade.load(file, **given)
