"""Token cascades against their definition: one forward of each model for every token, no cache."""

import os
from dataclasses import replace

import pytest
import torch
from helpers.architectures import save
from helpers.pairs import save_pair
from helpers.sequential_cascade import (
    SETTINGS,
    STUDENT_ONLY,
    SequentialCascade,
    pair_of,
    random_router,
)
from helpers.tiny import ragged_records, tiny_tokenizer

from caskd.models.decoding import (
    TokenCascade,
    check_caches,
    check_pair,
    load_for_decoding,
)
from caskd.store.errors import IdentityError, UsageError

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def pair(folders):
    small, large = folders
    return (
        load_for_decoding(str(small), "--model", device="cpu"),
        load_for_decoding(str(large), "--large", device="cpu"),
    )


@pytest.fixture(scope="module")
def prompts():
    tokenizer = tiny_tokenizer()
    return [tokenizer(record["prompt"])["input_ids"] for record in ragged_records(200)]


@pytest.fixture(scope="module")
def router(pair):
    return random_router(pair)


@pytest.fixture(scope="module")
def sequential(pair, router):
    return SequentialCascade(pair, router, NEW_TOKENS)


def check_equal(pair, sequential, router, prompts, rule, gamma):
    cascade = TokenCascade(*pair_of(rule, pair), rule, SETTINGS[rule], gamma, router)
    answers = [cascade.answer(prompt, NEW_TOKENS) for prompt in prompts]
    expected = [sequential(rule, prompt) for prompt in prompts]
    assert [answer.token_ids for answer in answers] == [ids for ids, _ in expected]
    assert [answer.num_large_tokens for answer in answers] == [sum(large) for _, large in expected]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.num_small_tokens + answer.num_large_tokens == len(answer.token_ids)
        assert cascade.num_flips(prompt, answer.token_ids) == 0
    return answers


@pytest.mark.parametrize("rule", SETTINGS)
def test_drafts_change_no_token(pair, sequential, router, prompts, rule):
    answers = check_equal(pair, sequential, router, prompts[:8], rule, 4)
    large = sum(answer.num_large_tokens for answer in answers)
    total = sum(len(answer.token_ids) for answer in answers)
    assert (0 < large < total) or rule == "spec"
    drafted = sum(answer.num_drafted for answer in answers)
    accepted = sum(answer.num_accepted for answer in answers)
    if rule in STUDENT_ONLY:
        assert drafted == accepted == 0
        assert sum(answer.num_large_forwards for answer in answers) == large
    else:
        assert 0 < accepted < drafted


GAMMAS = (1, 2, 4, 8, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "gamma"),
    [(rule, gamma) for rule in SETTINGS for gamma in GAMMAS if rule not in STUDENT_ONLY]
    # These draft nothing (test_drafts_change_no_token), so the length of a draft is idle.
    + [(rule, gamma) for rule in STUDENT_ONLY for gamma in (GAMMAS[0], GAMMAS[-1])],
)
def test_no_gamma_changes_a_token(pair, sequential, router, prompts, rule, gamma):
    """12 prompts; `just nightly` asks 200."""
    num_prompts = int(os.environ.get("CASKD_PROMPTS", "12"))
    check_equal(pair, sequential, router, prompts[:num_prompts], rule, gamma)


def test_each_token_is_scored_by_the_model_that_chose_it(pair, sequential, prompts):
    prompt = prompts[3]
    answer = TokenCascade(*pair, "token-v3", SETTINGS["token-v3"], 3).answer(prompt, NEW_TOKENS)
    ids, by_large = sequential("token-v3", prompt)
    with torch.inference_mode():
        small, large = (
            loaded.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            for loaded in pair
        )
    for index, (token, is_large) in enumerate(zip(ids, by_large, strict=True)):
        logprobs = (large if is_large else small)[index].log_softmax(-1)
        assert answer.token_logprobs[index] == pytest.approx(float(logprobs[token]), abs=1e-6)


def test_the_limits_of_alpha_and_p_th_are_the_models_alone(pair, prompts):
    small, large = pair
    texts = {
        name: [TokenCascade(*models, "spec").answer(p, NEW_TOKENS).token_ids for p in prompts[:3]]
        for name, models in (("small", (small, small)), ("large", (small, large)))
    }
    assert texts["small"] != texts["large"]
    for rule, number, same in (
        ("token-v3", 0.0, "large"), ("token-v3", 1.0, "small"), ("chow", 1.0, "small"),
        ("rsd", 0.0, "large"), ("rsd", 1.1, "small"), ("entropy", 0.0, "large"),
    ):  # fmt: skip
        cascade = TokenCascade(small, large, rule, number)
        found = [cascade.answer(prompt, NEW_TOKENS).token_ids for prompt in prompts[:3]]
        assert found == texts[same], (rule, number)


def test_the_counts_are_those_of_the_forward_passes(pair, prompts):
    prompt = prompts[0]
    seen = {"small": [], "large": []}
    handles = [
        loaded.model.register_forward_pre_hook(
            lambda _, __, kwargs, name=name: seen[name].append(kwargs["input_ids"].shape[1]),
            with_kwargs=True,
        )
        for name, loaded in zip(seen, pair, strict=True)
    ]
    answer = TokenCascade(*pair, "token-v3", 0.3, 4).answer(prompt, NEW_TOKENS)
    for handle in handles:
        handle.remove()
    assert answer.num_small_forwards == len(seen["small"]) == answer.num_drafted
    assert answer.num_large_forwards == len(seen["large"]) < len(answer.token_ids)
    assert answer.num_small_computed == sum(seen["small"])
    assert answer.num_large_computed == sum(seen["large"])
    # Every position of the text but the last is read once, and every rejected draft but the last
    # of its round once more.
    assert answer.num_large_computed >= len(prompt) + len(answer.token_ids) - 1
    assert sum(seen["large"]) < len(prompt) + answer.num_drafted + answer.num_large_forwards


def test_an_answer_ends_at_a_stop_id_and_before_a_stop_text(pair, sequential, prompts):
    small, large = pair
    prompt = prompts[0]
    whole = TokenCascade(small, large, "diff", 0.1, 4).answer(prompt, NEW_TOKENS)
    token = whole.token_ids[4]
    first = whole.token_ids.index(token)
    ended = replace(small, stop_ids=(token,))
    answer = TokenCascade(ended, large, "diff", 0.1, 4).answer(prompt, NEW_TOKENS)
    assert answer.token_ids == whole.token_ids[: first + 1]
    stop = whole.text[2:4]
    at = whole.text.index(stop)
    answer = TokenCascade(small, large, "diff", 0.1, 8).answer(prompt, NEW_TOKENS, [stop])
    assert answer.text == whole.text[:at]
    assert answer.token_ids == whole.token_ids[: at + 2]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma3"])
def test_caches_of_keys_and_values_roll_back(tmp_path, name):
    loaded = load_for_decoding(str(save(name, tmp_path / name)), "--large")
    check_caches(TokenCascade(loaded, loaded, "spec"), ("--model m", "--large m"), 60)


@pytest.mark.parametrize("name", ["rwkv", "minimax", "llama-dynamic"])
def test_a_cache_that_does_not_roll_back_is_refused_by_name(tmp_path, name):
    loaded = load_for_decoding(str(save(name, tmp_path / name)), "--large")
    cascade = TokenCascade(loaded, loaded, "spec")
    with pytest.raises(UsageError) as caught:
        check_caches(cascade, (f"--model {name}", "--large m"), 60)
    assert f"--model {name}" in str(caught.value)
    assert type(loaded.model).__name__ in str(caught.value)


def test_a_pair_that_cannot_continue_one_text_is_refused_by_name(pair, tmp_path):
    small, large = pair
    check_pair(small, large, "--large L")
    other = tiny_tokenizer("abc")
    with pytest.raises(IdentityError, match=r"--large L: .*vocabulary .*50 tokens"):
        check_pair(small, replace(large, tokenizer=other), "--large L")
    with pytest.raises(IdentityError, match=r"--large L: .*\[2, 7\].*\[2\].*eos_token_id"):
        check_pair(small, replace(large, stop_ids=(7, 2)), "--large L")
    templated = replace(large, identity={**large.identity, "template_digest": "f" * 32})
    with pytest.raises(IdentityError, match=r"--large L: .*ffffff.*none.*--chat-template"):
        check_pair(small, templated, "--large L")
    check_pair(small, templated, "--large L", own_templates=False)
