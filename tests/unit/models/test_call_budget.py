"""The threshold of a call budget is measured on the answers of the small model, to their ends."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pairs import save_pair
from helpers.sequential_cascade import LAST

from caskd.eval.inference.cascades import RuleFlags, calibrated
from caskd.eval.inference.requests import EvalExample
from caskd.eval.tasks import Task
from caskd.models.decoding import TokenCascade, load_for_decoding

NEW_TOKENS = 12
BUDGET = 0.3


def test_no_token_behind_a_stop_text_is_counted(tmp_path: Path) -> None:
    small, large = (
        # Without an end of their own, answers go on to the limit.
        replace(load_for_decoding(str(folder), "--model", device="cpu"), stop_ids=(10**6,))
        for folder in save_pair(tmp_path, torch.float64)
    )
    small = replace(small, call_id=LAST)
    texts = [f"q{n}: abc {letter}" for n, letter in enumerate("xyzuvw")]
    prompts = [small.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    alone = TokenCascade(small, large, "call", 1e9)
    written = [alone.answer(prompt, NEW_TOKENS).text for prompt in prompts]
    stop = max("".join(written), key=lambda c: sum(c in text[1:-1] for text in written))
    answers = [alone.answer(prompt, NEW_TOKENS, [stop]) for prompt in prompts]
    lengths = [len(answer.token_ids) for answer in answers]
    assert sum(lengths) < NEW_TOKENS * len(prompts)
    scores = [alone.own_scores(prompt, NEW_TOKENS, [stop]) for prompt in prompts]
    assert [len(one) for one in scores] == lengths

    requests = [
        EvalExample(str(n), n, "t", ["a"], "", prompt, [], []) for n, prompt in enumerate(prompts)
    ]
    flags = RuleFlags("call", None, None, budget=BUDGET)
    tasks = {"t": Task("chrf", stop=(stop,))}
    _, measured = calibrated(alone, flags, requests, tasks, NEW_TOKENS)
    assert measured.calibration == {"prompts": len(prompts), "tokens": sum(lengths)}
    share = (np.concatenate(scores) >= measured.setting).mean()
    assert share == pytest.approx(BUDGET, abs=0.5 / sum(lengths) + 1e-9)
