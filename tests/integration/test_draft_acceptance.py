"""A student as the teacher's draft model: bounds from a store, and measured with both models."""

import json

import numpy as np
import pytest
from helpers.training import capture

from caskd.cli.main import main
from caskd.eval.answers import read_predictions
from caskd.eval.next_token.own_texts import own_acceptance
from caskd.eval.next_token.teacher_forcing import student_rows
from caskd.models.decoding import TokenCascade, load_for_decoding
from caskd.store import TeacherStore
from caskd.store.errors import IdentityError

ROUNDING = 2e-3
"""Of the stored logits, in probability."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("draft")
    capture(root, num=10, top_k=40)
    return root


@pytest.fixture(scope="module")
def pair(root):
    return tuple(
        load_for_decoding(str(root / name), "--model", dtype="float64", device="cpu")
        for name in ("student", "teacher")
    )


def texts(store):
    """Prompt and response of each example."""
    for index in range(len(store)):
        batch = store.read([index])
        ids = batch.token_ids.astype(np.int64).tolist()
        start = int(np.argmax(batch.is_response))
        assert batch.is_response[start:].all()
        yield ids[:start], ids[start:]


def test_the_decoder_forced_along_the_stores_texts_lies_in_the_bounds(root, pair):
    store = TeacherStore.open(root / "store")
    rows = student_rows(pair[0], store, None)
    decoder = TokenCascade(*pair, "spec")
    found = np.concatenate([decoder.forced(*text).acceptance for text in texts(store)])
    assert len(found) == len(rows.right)
    low, high = rows.acceptance_low - ROUNDING, rows.acceptance_high + ROUNDING
    assert ((low <= found) & (found <= high)).all()
    assert (high - low).mean() < 0.2
    for neighbour in (np.roll(found, 1), np.roll(found, -1)):
        assert ((neighbour < low) | (neighbour > high)).mean() > 0.3


def test_the_acceptance_of_own_texts_is_that_of_one_pass_whatever_the_drafts(root, pair):
    store = TeacherStore.open(root / "store")
    prompts = [prompt for prompt, _ in texts(store)][:5]
    for prompt in prompts:
        answers = [TokenCascade(*pair, "spec", gamma=gamma).answer(prompt, 8) for gamma in (1, 4)]
        along = TokenCascade(*pair, "spec").forced(prompt, answers[0].token_ids)
        for answer in answers:
            assert answer.expected_acceptance == pytest.approx(np.mean(along.acceptance), abs=1e-9)
    assert TokenCascade(*pair, "token-v3").answer(prompts[0], 8).expected_acceptance is None


@pytest.mark.slow
def test_the_report_shows_the_acceptance_of_own_texts_beside_the_bounds(root, tmp_path, capsys):
    def predicted(name, rule="spec"):
        words = ["--model", str(root / "student"), "--large", str(root / "teacher")]
        words += ["--data", str(root / "data.jsonl"), "--max-new-tokens", "6", "--device", "cpu"]
        words += ["--task-metric", "chrf", "--token-rule", rule, "--limit", "4"]
        assert main(["predict", *words, "--out", str(tmp_path / name)]) == 0
        return str(tmp_path / name)

    def report(file, *students):
        words = ["eval", "--next-token", str(root / "store"), "--token-cascade", file]
        for student in students:
            words += ["--student", str(root / student)]
        capsys.readouterr()
        return main([*words, "--out", str(tmp_path / "report")]), capsys.readouterr()

    file = predicted("own.parquet")
    code, shown = report(file, "student")
    assert code == 0
    answers = read_predictions(file)
    tokens = answers.numbers("output_tokens")
    mean = (answers.numbers("expected_acceptance") * tokens).sum() / tokens.sum()
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    own = summary["students"][0]["own_texts"]
    assert own == {"expected_acceptance": pytest.approx(mean), "num_tokens": tokens.sum()}
    low, high = summary["students"][0]["expected_acceptance"]
    line = next(x for x in shown.out.splitlines() if "own texts" in x)
    assert all(fact in line for fact in (f"{mean:.4f}", f"{low:.4f}", f"{high:.4f}"))
    assert f"{mean:.4f}" in (tmp_path / "report" / "index.html").read_text()
    for wrong, student, code, facts in (
        (predicted("v3.parquet", rule="token-v3"), "student", 2, ("token-v3", "--token-rule spec")),
        (file, "teacher", 3, ("--student", "small model 'student'")),
    ):
        found, shown = report(wrong, student)
        assert found == code, shown.err
        assert all(fact in shown.err for fact in facts), shown.err
        assert shown.err.count("\n") == 1
    with pytest.raises(IdentityError, match=r"large model has weights .*store's teacher, 000000"):
        own_acceptance([file], [str(root / "student")], {"weights_digest": 12 * "0"})
