"""`caskd store audit` against a dense computation in float64."""

import json

import numpy as np
import pytest
import torch
from helpers.training import capture
from transformers import AutoModelForCausalLM

from caskd.cli.main import main
from caskd.eval.next_token.audit import label_figures
from caskd.store import TeacherStore


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("audit")
    capture(root, num=24)
    return root


@torch.inference_mode()
def dense(folder, store):
    """Probability of each label, one example at a time, in float64, and the task of each."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval().double()
    found, tasks = [], []
    for index in range(len(store)):
        batch = store.read([index])
        ids = torch.from_numpy(batch.token_ids.astype(np.int64))
        p = model(ids[None]).logits[0].softmax(-1)
        for place in np.flatnonzero(batch.is_response):
            found.append(float(p[place - 1, ids[place]]))
            tasks.append(store.spec.tasks[store.index.task[index]])
    return np.array(found), np.array(tasks)


@pytest.mark.slow
def test_the_figures_are_those_of_a_dense_computation(root, capsys):
    store = TeacherStore.open(root / "store")
    words = ["store", "audit", str(root / "store"), "--student", str(root / "student")]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ours, tasks = dense(root / "student", store)
    theirs, _ = dense(root / "teacher", store)
    parts = {"all": np.ones(len(ours), bool)} | {t: tasks == t for t in store.spec.tasks}
    assert len(parts) > 2
    assert set(found["tasks"]) == set(parts)
    far = 0
    for name, part in parts.items():
        row = found["tasks"][name]
        assert row["num_rows"] == part.sum()
        for model, p in (("student", ours[part]), ("teacher", theirs[part])):
            for threshold, share in row[model]["below"].items():
                assert share == pytest.approx((p < float(threshold)).mean(), abs=1e-9)
                far += 0 < share < 1
            for q, value in row[model]["quantiles"].items():
                assert value == pytest.approx(np.quantile(p, float(q)), rel=2e-3, abs=1e-6)
    assert far > 4
    assert main([*words, "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert f"{(ours < 0.01).mean():.2%} (teacher {(theirs < 0.01).mean():.2%})" in text


def test_an_example_counts_once():
    found = label_figures(
        np.array([0.5, 0.009, 0.001, 0.2]), np.full(4, 0.5), np.array([0, 1, 1, 2])
    )
    assert found["examples_with_far_labels"] == pytest.approx(1 / 3)
    assert found["student"]["below"] == {"0.001": 0.0, "0.01": 0.5, "0.1": 0.5}


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [({"--limit": "0"}, 2, "--limit 0"), ({"--student": "/nowhere"}, 2, "--student /nowhere")],
)
def test_mistakes_are_named(root, change, code, named, capsys):
    flags = {"--student": str(root / "student"), "--device": "cpu", **change}
    words = [word for pair in flags.items() for word in pair]
    assert main(["store", "audit", str(root / "store"), *words]) == code
    assert named in capsys.readouterr().err
