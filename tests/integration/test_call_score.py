"""By what a student with a CALL token asks for the large model: offline, and while decoding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.training import capture
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.eval.inference.cascades import RuleFlags, budget_threshold, calibrated
from caskd.eval.next_token.teacher_forcing import student_rows
from caskd.models.decoding import TokenCascade, load_for_decoding
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train.delegation import add_call_column, add_call_token

RULES = ("l2d", "ova", None)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("call-score")
    capture(root, num=10)
    return root


def student(root, rule):
    """A student whose CALL token has random weights, as an export of `--delegate RULE`."""
    folder = root / f"asks-{rule}"
    tokenizer = AutoTokenizer.from_pretrained(root / "student")
    model = AutoModelForCausalLM.from_pretrained(root / "student")
    column = add_call_token(tokenizer, "s")
    add_call_column(model, column, "s")
    torch.manual_seed(5)
    with torch.no_grad():
        model.get_output_embeddings().weight[column].normal_(std=0.3)
    if rule is not None:
        model.config.call_token_rule = rule
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_for_decoding(str(folder), "--model", dtype="float64", device="cpu")


@torch.inference_mode()
def definition(loaded, text, rule):
    """Scores of the places behind each token but the last, from the rules' papers."""
    logits = loaded.model(torch.tensor([text])).logits[0, :-1]
    call = loaded.call_id
    best = logits[:, :call].softmax(-1).amax(-1)
    if rule == "l2d":  # one softmax of the vocabulary and the token
        whole = logits[:, : call + 1].softmax(-1)
        return (whole[:, call] / whole[:, :call].amax(-1)).log()
    odds = logits[:, call] - logits[:, :call].logsumexp(-1)
    return (odds.sigmoid() / best).log() if rule == "ova" else odds


@pytest.mark.parametrize("rule", RULES)
def test_share_and_order_while_decoding_are_those_offline(root, rule):
    store = TeacherStore.open(root / "store")
    small = student(root, rule)
    large = load_for_decoding(str(root / "teacher"), "--large", dtype="float64", device="cpu")
    rows = student_rows(small, store, None)
    threshold = budget_threshold(rows.call_score.tolist(), 0.3)
    cascade = TokenCascade(small, large, "call", threshold)
    scores, by_large, wanted = [], [], []
    for index in range(len(store)):
        batch = store.read([index])
        text = batch.token_ids.astype(np.int64).tolist()
        start = int(np.argmax(batch.is_response))
        along = cascade.forced(text[:start], text[start:])
        scores += along.scores
        by_large += along.by_large
        wanted += definition(small, text, rule)[start - 1 :].tolist()
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(rows.call_score, wanted, rtol=0, atol=1e-5)
    assert np.array_equal(np.argsort(scores), np.argsort(rows.call_score))
    assert np.array_equal(by_large, rows.call_score >= threshold)
    assert np.mean(by_large) == pytest.approx(0.3, abs=0.02)
    same_order = np.array_equal(np.argsort(scores), np.argsort(rows.call_log_odds))
    assert same_order == (rule not in ("l2d", "ova"))

    # In an answer: the small model stands for the large one, so that the text is its own.
    alone = TokenCascade(small, small, "call", threshold)
    answer = alone.answer(text[:start], 8)
    assert answer.num_large_tokens == sum(alone.forced(text[:start], answer.token_ids).by_large)
    own = alone.own_scores(text[:start], 8)
    assert answer.num_large_tokens == sum(score >= threshold for score in own)


def test_a_budget_is_measured_up_to_stop_texts_and_on_finite_scores_alone():
    asked = []

    def own_scores(prompt, max_new_tokens, stop):
        asked.append((prompt, max_new_tokens, stop))
        return [0.5, scores.pop()]

    scores = [float("nan"), 1.5]
    cascade = SimpleNamespace(own_scores=own_scores, with_setting=lambda setting: setting)
    given = (
        [SimpleNamespace(prompt=[4, 5], task="t")],
        {"t": SimpleNamespace(stop=("\n",))},
        7,
    )
    flags = RuleFlags("call", None, None, budget=0.5)
    threshold, measured = calibrated(cascade, flags, *given)
    assert threshold == measured.setting == 1.0
    assert asked == [([4, 5], 7, ("\n",))]
    with pytest.raises(UsageError, match=r"--call-budget 0\.5: .* not finite at 1 of 2 tokens"):
        calibrated(cascade, flags, *given)
