"""The fingerprint of a served model: a restart passes, a changed model does not."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import ragged_records, tiny_model, tiny_tokenizer

from caskd.models.engines import ask_fingerprint, fixed_prompts, key_of, measure_fingerprint
from caskd.models.engines.prompt_rows import ordered_rows
from caskd.store.fingerprint import FINGERPRINT, fingerprint_distance
from caskd.store.format import identity_differences

NUM_IDS = 50
PROMPTS = fixed_prompts(NUM_IDS, key_of("0123456789abcdef" * 4))


def scorer(model: Any) -> Callable[[Any], Any]:
    """What a server of this model answers."""

    def score(tokens: list[int]) -> Any:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens])).logits[0].float()
        table = logits.log_softmax(dim=-1)[:-1, :NUM_IDS]
        values, ids = table.topk(8)
        rows = [
            {label: float(row[label])} | dict(zip(i.tolist(), v.tolist(), strict=True))
            for row, label, v, i in zip(table, tokens[1:], values, ids, strict=True)
        ]
        return ordered_rows(rows, tokens[1:], 8, NUM_IDS)

    return score


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(tiny_tokenizer(), hidden=64)


@pytest.fixture(scope="module")
def published(model: Any) -> dict[str, Any]:
    return json.loads(json.dumps(measure_fingerprint(scorer(model), PROMPTS)))


def differs(published: dict[str, Any], model: Any) -> bool:
    asked = ask_fingerprint(scorer(model), PROMPTS)
    return bool([*identity_differences({FINGERPRINT: published}, {FINGERPRINT: asked})])


def rounded(model: Any, bits: int) -> Any:
    """A copy whose matrices are rounded to so many bits, each row with its own scale."""
    copied = copy.deepcopy(model)
    steps = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for weight in copied.parameters():
            if weight.dim() == 2:
                scale = (weight.abs().amax(dim=1, keepdim=True) / steps).clamp(min=1e-12)
                weight.copy_((weight / scale).round() * scale)
    return copied


def lora_tuned(model: Any) -> Any:
    """A copy after one epoch of LoRA on another task."""
    peft = pytest.importorskip("peft")
    tokenizer = tiny_tokenizer()
    options = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=True)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(copy.deepcopy(model), options)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-3)
    for record in ragged_records(24, seed=9):
        ids = torch.tensor([tokenizer.encode(record["prompt"] + record["response"])])
        tuned(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned.eval()


def test_a_restart_is_the_same_model(model: Any, published: dict[str, Any]) -> None:
    again = copy.deepcopy(model)
    assert not differs(published, again)
    threads = torch.get_num_threads()
    assert published["tolerance"] == {"mean": 5e-4, "max": 5e-3}, threads


def test_other_kernels_are_the_same_model(model: Any, published: dict[str, Any]) -> None:
    """Float64 differs from float32 as kernels of another release do."""
    assert not differs(published, copy.deepcopy(model).double())


@pytest.mark.parametrize("change", ["lora", "8 bits", "4 bits", "another seed"])
def test_another_model_is_told_apart(model: Any, published: dict[str, Any], change: str) -> None:
    changed = {
        "lora": lora_tuned,
        "8 bits": lambda m: rounded(m, 8),
        "4 bits": lambda m: rounded(m, 4),
        "another seed": lambda m: tiny_model(tiny_tokenizer(), hidden=64, seed=1),
    }[change](model)
    assert differs(published, changed)


def test_the_tolerance_is_that_of_asking_twice() -> None:
    calls = iter(range(10_000))
    ids, labels = np.arange(8)[None], np.zeros(1, np.int64)

    def noisy(tokens: list[int]) -> Any:
        shift = 0.01 if next(calls) >= len(PROMPTS) else 0.0
        from caskd.models.engines import PromptRows

        logprobs = (-3.0 - shift - np.arange(8.0)[None]).astype(np.float32)
        return PromptRows(ids, logprobs, logprobs[:, 0], labels)

    found = measure_fingerprint(noisy, PROMPTS)["tolerance"]
    assert found == {"mean": pytest.approx(0.04, abs=1e-4), "max": pytest.approx(0.04, abs=1e-4)}


def test_distances_by_hand() -> None:
    ours = {"label_logprobs": [[-1.0, -2.0]], "top_ids": [[3, 4]], "top_logprobs": [[-0.5, -1.5]]}
    theirs = {"label_logprobs": [[-1.1, -2.0]], "top_ids": [[3, 5]], "top_logprobs": [[-0.5, -1.2]]}
    mean, largest = fingerprint_distance(ours, theirs)
    assert mean == pytest.approx(0.05)
    assert largest == pytest.approx(0.3)  # id 5 is at most -1.5 in ours
    for broken in ({}, {**theirs, "label_logprobs": [[-1.0]]}, {**theirs, "top_ids": []}):
        assert fingerprint_distance(ours, broken) == (np.inf, np.inf)


def test_prompts_depend_on_the_vocabulary_alone() -> None:
    assert fixed_prompts(NUM_IDS, key_of("0123456789abcdef" * 4)) == PROMPTS
    assert fixed_prompts(NUM_IDS, 7) != PROMPTS
    assert np.shape(PROMPTS) == (32, 16)
    assert np.max(PROMPTS) < NUM_IDS
