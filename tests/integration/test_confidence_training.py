"""`caskd train --confidence`, and the bounds of acceptance in metrics.jsonl and eval.jsonl."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.training import capture, config_for, read_metrics
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from caskd.cli.main import main
from caskd.eval.next_token.teacher_forcing import student_rows
from caskd.models.decoding import load_for_decoding
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train import train
from caskd.train.checkpoint import newest_complete
from caskd.train.run.exporter import export
from caskd.train.run.plan import plan_run

CONFIDENT = {"objective": "cat-xent-s", "confidence": "gatekeeper", "confidence_weight": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("confidence")
    capture(folder)
    return folder


def weights(run):
    files = sorted((newest_complete(run) / "weights").glob("*.safetensors"))
    return {name: value for path in files for name, value in load_file(path).items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_weight_0_is_the_plain_run_bit_for_bit(root):
    options = {"objective": "cat-dist", "steps": 3}
    train(config_for(root, "plain", **options))
    zero = {"confidence": "gatekeeper", "confidence_weight": 0.0}
    train(config_for(root, "zero", **options, **zero))
    train(config_for(root, "some", **options, confidence="gatekeeper"))
    assert same(weights(root / "plain"), weights(root / "zero"))
    assert not same(weights(root / "plain"), weights(root / "some"))
    added = ("unsure_share", "unsure_kl")
    lines = read_metrics(root / "zero")
    assert all(line["unsure_kl"] > 0 and 0 < line["unsure_share"] < 1 for line in lines)
    plain = [{k: v for k, v in line.items() if k not in added} for line in lines]
    assert plain == read_metrics(root / "plain")


@pytest.mark.slow
def test_the_student_becomes_unsure_and_the_run_continues_bit_for_bit(root):
    options = {**CONFIDENT, "steps": 8, "save_every": 4, "lr": 1e-2}
    train(config_for(root, "whole", **options))
    lines = read_metrics(root / "whole")
    assert lines[-1]["unsure_kl"] < lines[0]["unsure_kl"]
    config = config_for(root, "half", **options)
    train(config)
    (root / "half" / "checkpoints" / "step-00000008" / "COMPLETE").unlink()
    (root / "half" / "last-save.json").unlink()
    train(replace(config, resume=True))
    assert read_metrics(root / "half") == lines
    assert same(weights(root / "whole"), weights(root / "half"))
    exported = export(root / "half", root / "model")
    assert "confidence: gatekeeper, weight 0.5" in (exported / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(exported)
    with pytest.raises(Exception, match="confidence"):
        train(replace(config, resume=True, confidence_weight=0.4))


@pytest.mark.slow
def test_bounds_of_acceptance_are_those_of_the_evaluation(root):
    """The first step sees every row of the store, by the student as it was before."""
    store = TeacherStore.open(str(root / "store"))
    size = int((store.row_counts() > 0).sum())
    batch = {"global_batch_size": size, "micro_batch_size": size}
    for tail in ("bucket", "renormalise", "drop"):
        train(config_for(root, tail, steps=1, tail=tail, eval_store=str(root / "store"), **batch))
    loaded = load_for_decoding(str(root / "student"), flag="--student", dtype="float32")
    rows = student_rows(loaded, store, None)
    low, high = rows.acceptance_low.mean(), rows.acceptance_high.mean()
    assert 0.01 < low < high - 1e-3 < 1
    for tail in ("bucket", "renormalise", "drop"):
        first = read_metrics(root / tail)[0]
        evaluated = json.loads((root / tail / "eval.jsonl").read_text().splitlines()[0])
        for line in (first, evaluated):
            found = line["acceptance_low"], line["acceptance_high"]
            np.testing.assert_allclose(found, (low, high), rtol=1e-5)
    train(config_for(root, "labels", steps=1, objective="xent"))
    assert read_metrics(root / "labels")[0]["acceptance_low"] is None


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"confidence_weight": 0.5}, ("--confidence-weight", "--confidence RULE")),
        ({"confidence": "gatekeeper", "confidence_weight": 1.0}, ("1", "less than 1")),
        ({"confidence": "gatekeeper", "confidence_weight": -0.1}, ("-0.1",)),
        ({"confidence": "gatekeeper", "objective": "alm"}, ("alm", "tokens")),
        ({"confidence": "gatekeeper", "delegate": "loss"}, ("--delegate loss", "omit")),
    ],
)
def test_options_that_contradict_each_other_are_refused(root, changes, facts):
    with pytest.raises(UsageError) as error:
        config_for(root, "refused", **changes)
    assert all(fact in str(error.value) for fact in facts)


def test_the_plan_names_the_term(root):
    plan = plan_run(config_for(root, "planned", confidence="gatekeeper"))
    assert "confidence   gatekeeper, weight 0.1" in list(plan.summary())


def test_the_command_line_has_the_flags(root, capsys):
    arguments = ["train", "--store", str(root / "store"), "--student", str(root / "student")]
    arguments += ["--out", str(root / "dry"), "--steps", "2", "--dry-run", "--dtype", "float32"]
    arguments += ["--global-batch-size", "8"]
    assert main([*arguments, "--confidence", "cascade-gatekeeper"]) in (0, None)
    assert "cascade-gatekeeper, weight 0.1" in "".join(capsys.readouterr())
