"""Tasks and metrics: what counts as right, by hand and against sacrebleu."""

import pytest
import sacrebleu

from caskd.eval.metrics import find_metric
from caskd.eval.metrics.metrics import METRICS
from caskd.eval.tasks import TASKS, Task, choose_tasks, describe, quality
from caskd.store.errors import UsageError


def score(metric, text, *references, options=(), normalize=None):
    return quality(Task(metric, normalize=normalize), text, references, options)


@pytest.mark.parametrize(
    ("metric", "text", "references", "expected"),
    [
        ("exact_match", " a  b\n", ["a b"], 1.0),
        ("exact_match", "a B", ["a b"], 0.0),
        ("exact_match", "b", ["a", "b"], 1.0),
        ("accuracy", " Positive.", ["positive"], 1.0),
        ("accuracy", "positive indeed", ["positive"], 0.0),
        ("token_f1", "the cat sat", ["a cat sat down"], 0.8),
        ("token_f1", "The Cat!", ["cat"], 1.0),
        ("token_f1", "x", ["y z", "x y"], 2 / 3),
        ("token_f1", "", ["the"], 0.0),
        ("token_f1", "", ["x"], 0.0),
        ("token_f1", "x x", ["x"], 2 / 3),
        ("numeric_match", "so 48/2=24 clips, 72 in all.", ["24+48=72\n#### 72"], 1.0),
        ("numeric_match", "$1,200.00", ["1200"], 1.0),
        ("numeric_match", "-3", ["3"], 0.0),
        ("numeric_match", "8-3", ["3"], 1.0),
        ("numeric_match", "none", ["none"], 0.0),
        ("chrf", "same words", ["same words"], 1.0),
        ("bleu", "one two three four", ["one two three four"], 1.0),
        ("bleu", "", ["one"], 0.0),
    ],
)
def test_quality_of_one_answer(metric, text, references, expected):
    assert score(metric, text, *references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("B. Paris", 1.0), ("b", 1.0), ("A or B", 0.0), ("Bonn", 0.0), ("", 0.0)],
)
def test_an_answer_names_the_option_that_it_begins_with(text, expected):
    assert score("accuracy", text, "B", options=["A", "B", "C"]) == expected


def test_of_two_options_the_longer_one_is_meant():
    options = ["entailment", "entailment not"]
    assert score("accuracy", "entailment not shown", "entailment", options=options) == 0.0
    assert score("accuracy", "entailment shown", "entailment", options=options) == 1.0


def test_normalisation_of_a_task():
    assert score("exact_match", "The Nile.", "nile") == 0.0
    assert score("exact_match", "The Nile.", "nile", normalize="squad") == 1.0


@pytest.mark.parametrize(("metric", "tokenizer"), [("bleu", "13a"), ("bleu-zh", "zh")])
def test_bleu_is_sacrebleus_with_every_reference(metric, tokenizer):
    texts = {"13a": ("the cat sat on a mat", ["the cat sat on the mat", "a cat is on a mat"]),
             "zh": ("我喜欢吃苹果和桃", ["我喜欢吃苹果", "我爱吃苹果和梨"])}  # fmt: skip
    text, references = texts[tokenizer]
    expected = sacrebleu.sentence_bleu(text, references, tokenize=tokenizer).score / 100
    assert 0.1 < expected < 0.99
    assert score(metric, text, *references) == pytest.approx(expected, abs=1e-12)
    if tokenizer == "zh":  # words of one sign each: the other tokenizer sees a single word
        assert score("bleu", text, *references) != pytest.approx(expected, abs=0.1)


def test_chrf_is_sacrebleus():
    expected = sacrebleu.sentence_chrf("a small cat", ["a cat", "small cats"]).score / 100
    assert score("chrf", "a small cat", "a cat", "small cats") == pytest.approx(expected)


def test_what_is_not_installed_is_refused_in_one_line(monkeypatch):
    def without_mecab(**_):
        raise RuntimeError("\nJapanese tokenization requires extra dependencies.\n\n pip ...")

    monkeypatch.setattr("sacrebleu.metrics.bleu.BLEU.__init__", lambda _, **o: without_mecab(**o))
    with pytest.raises(UsageError, match=r"pip install 'sacrebleu\[ja\]'") as caught:
        find_metric("bleu-ja-mecab")
    assert "\n" not in str(caught.value)


def test_every_line_of_the_table_has_its_metric():
    for name, task in TASKS.items():
        assert task.metric in METRICS or task.metric.startswith("bleu-"), name


def test_the_table_is_extended_in_one_line(monkeypatch):
    monkeypatch.setitem(TASKS, "mine", Task("token_f1", stop=("#",)))
    assert choose_tasks(["mine"])["mine"] == Task("token_f1", stop=("#",))


def test_flags_come_before_the_table():
    names = ["e2e", "other", "third", "other"]
    flags = ["e2e=chrf", "third=numeric_match", "token_f1"]
    chosen = choose_tasks(names, flags, ["END", "\n"])
    assert chosen == {
        "e2e": Task("chrf", stop=("\n", "END")),
        "other": Task("token_f1", stop=("END", "\n")),
        "third": Task("numeric_match", stop=("END", "\n")),
    }
    assert describe(chosen) == "chrf (e2e); numeric_match (third); token_f1 (other)"
    assert describe(choose_tasks(["", "x"])) == "exact_match"
    assert describe(choose_tasks(["nq_open"])) == "exact_match/squad"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a=rouge"], "metric 'rouge': unknown; expected one of exact_match, accuracy"),
        (["b=chrf"], "--task-metric: unknown task 'b'; expected one of 'a'"),
        (["bleu-klingon"], "bleu-klingon: unknown; expected a tokenizer of sacrebleu"),
    ],
)
def test_mistakes_of_users(flags, message):
    with pytest.raises(UsageError, match=message):
        choose_tasks(["a"], flags)


def test_a_normalisation_that_there_is_not(monkeypatch):
    monkeypatch.setitem(TASKS, "mine", Task(normalize="loud"))
    with pytest.raises(UsageError, match=r"normalize 'loud': .*none, spaces"):
        choose_tasks(["mine"])
