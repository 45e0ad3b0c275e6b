"""A CALL token from training to the answers of two models."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import ragged_records, save_tiny, write_jsonl
from helpers.training import capture, config_for, read_metrics
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.cli.main import main
from caskd.eval import PredictConfig, predict
from caskd.eval.answers import read_predictions
from caskd.eval.inference.cascades import budget_threshold
from caskd.eval.next_token.teacher_forcing import student_rows
from caskd.models.decoding import TokenCascade, load_for_decoding
from caskd.store import TeacherStore
from caskd.store.errors import UsageError
from caskd.train import train
from caskd.train.checkpoint import newest_complete, read_state
from caskd.train.config import TrainConfig
from caskd.train.run.exporter import export

SHARE = 0.3
NEW_TOKENS = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("delegation")
    capture(folder)
    return folder


@pytest.fixture(scope="module")
def exported(root):
    """A student that was trained to delegate nearly everything, exported."""
    options = {"delegate": "random", "delegate_share": 0.95, "lr": 3e-2, "steps": 16}
    train(config_for(root, "eager", objective="xent", **options))
    return export(root / "eager", root / "model")


def weights(run):
    from safetensors.torch import load_file

    found = {}
    for path in sorted((newest_complete(run) / "weights").glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.slow
def test_a_run_reaches_its_share_and_continues_bit_for_bit(root):
    options = {"delegate": "loss", "delegate_share": SHARE, "objective": "cat-dist"}
    train(config_for(root, "whole", steps=8, save_every=4, **options))
    lines = read_metrics(root / "whole")
    shares = [line["delegated_share"] for line in lines]
    assert shares[0] == 0  # no step has been counted
    assert abs(np.mean(shares) - SHARE) < 0.05
    for line in lines[1:]:
        share, loss = line["delegated_share"], line["delegated_loss"]
        total = share * loss + (1 - share) * line["other_loss"]
        assert total == pytest.approx(line["loss"], rel=1e-6)
    state = read_state(newest_complete(root / "whole"))
    assert sum(count for _, count in state.delegation["cells"]) > 0

    half = root / "half"
    config = config_for(root, "half", steps=8, save_every=4, **options)
    train(config)
    for path in half.glob("checkpoints/step-00000008"):
        (path / "COMPLETE").unlink()
    (half / "last-save.json").unlink()
    train(replace(config, resume=True))
    assert read_metrics(half) == lines
    first, second = weights(root / "whole"), weights(half)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_state(newest_complete(half)).delegation == state.delegation


def test_the_first_step_is_that_of_the_plain_objective(root):
    """No row is delegated yet, and the CALL column is in no normaliser."""
    train(config_for(root, "plain", steps=1))
    train(config_for(root, "first", steps=1, delegate="rho"))
    plain, first = read_metrics(root / "plain")[0], read_metrics(root / "first")[0]
    assert first["delegated_share"] == 0
    for name in ("loss", "kl", "tail_mass", "student_accuracy", "keep_fraction"):
        assert first[name] == pytest.approx(plain[name], rel=1e-6)


def test_two_micro_batches_are_as_one(root):
    for size in (4, 8):
        options = {"delegate": "random", "micro_batch_size": size, "steps": 3}
        train(config_for(root, f"micro-{size}", **options))
    small, large = (read_metrics(root / f"micro-{size}") for size in (4, 8))
    assert [x["delegated_share"] for x in small] == [x["delegated_share"] for x in large]
    assert 0 < small[-1]["delegated_share"] < 1


def test_any_program_can_open_the_export_and_emits_the_token(exported):
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    described = json.loads((exported / "config.json").read_text())
    call = described["call_token_id"]
    assert described["call_token_rule"] == "random"
    assert tokenizer.convert_tokens_to_ids("<CALL>") == call == len(tokenizer) - 1
    assert model.get_output_embeddings().weight.shape[0] == call + 1
    assert f"(id {call}) asks a larger model" in (exported / "README.md").read_text()
    inputs = tokenizer("a1 b", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(
            input_ids=inputs["input_ids"], max_new_tokens=8, do_sample=False, pad_token_id=0
        )[0]
    assert call in ids.tolist()
    assert "<CALL>" in tokenizer.decode(ids)
    assert "<CALL>" not in tokenizer.decode(ids, skip_special_tokens=True)


def answers(root, exported, out, **options):
    options = {
        "model": str(exported), "large": str(root / "teacher"), "token_rule": "call",
        "data": (str(root / "data.jsonl"),), "out": str(root / out), "task_metric": ("chrf",),
        "max_new_tokens": NEW_TOKENS, "device": "cpu", "limit": 12, **options,
    }  # fmt: skip
    return predict(PredictConfig(**options))


def reference(small, large, call, prompt, threshold):
    """The definition: one pass over the whole text for each token, without caches."""
    ids, by_large = list(prompt), 0
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = small.model(torch.tensor([ids])).logits[0, -1]
            odds = logits[call] - logits[:call].logsumexp(0)
            chosen = logits[:call]
            if odds >= threshold:
                chosen = large.model(torch.tensor([ids])).logits[0, -1, :call]
        by_large += int(odds >= threshold)
        ids.append(int(chosen.argmax()))
        if ids[-1] in small.stop_ids:
            break
    return ids[len(prompt) :], by_large


@pytest.mark.slow
def test_a_cascade_of_the_call_rule_is_its_definition(root, exported):
    small, large = (
        load_for_decoding(str(path), "--model", dtype="float64", device="cpu")
        for path in (exported, root / "teacher")
    )
    cascade = TokenCascade(small, large, "call", 0.0)
    prompts = [small.tokenizer(x["prompt"])["input_ids"] for x in ragged_records(12)]
    odds = [s for prompt in prompts for s in cascade.own_scores(prompt, NEW_TOKENS)]
    threshold = budget_threshold(odds, 0.5)
    assert np.mean(np.array(odds) >= threshold) == pytest.approx(0.5, abs=0.02)
    cascade = cascade.with_setting(threshold)
    counts = []
    for prompt in prompts:
        answer = cascade.answer(prompt, NEW_TOKENS)
        wanted = reference(small, large, small.call_id, prompt, threshold)
        assert (answer.token_ids, answer.num_large_tokens) == wanted
        assert small.call_id not in answer.token_ids
        counts.append(answer.num_large_tokens)
    assert 0 < sum(counts) < NEW_TOKENS * len(prompts)


@pytest.mark.slow
def test_the_limits_of_the_threshold_are_the_models_alone(root, exported):
    for limit, name, model in ((1e6, "small", exported), (-1e6, "large", root / "teacher")):
        mixed = answers(root, exported, f"limit-{name}.parquet", call_threshold=limit)
        alone = answers(
            root, exported, f"{name}.parquet", model=str(model), large=None, token_rule=None
        )
        of = [x.columns.column("token_ids").to_pylist() for x in (mixed, alone)]
        assert of[0] == of[1]
        share = mixed.numbers("num_large_tokens").sum() / mixed.numbers("output_tokens").sum()
        assert share == (name == "large")


@pytest.mark.slow
def test_the_measured_threshold_depends_on_no_batch_and_no_worker(root, exported):
    whole = answers(root, exported, "whole.parquet", call_budget=0.4)
    described = whole.metadata["token_cascade"]
    assert described["call_budget"] == 0.4
    assert described["calibration"]["prompts"] == 12
    threshold = described["call_threshold"]
    for worker in (1, 0):
        shared = answers(
            root, exported, "shared.parquet", call_budget=0.4, worker=worker, num_workers=2,
            batch_size=5,
        )  # fmt: skip
    fixed = answers(root, exported, "fixed.parquet", call_threshold=threshold, batch_size=3)
    texts = [x.columns.column("token_ids").to_pylist() for x in (whole, shared, fixed)]
    assert texts[0] == texts[1] == texts[2]
    assert shared.metadata["token_cascade"] == described
    assert read_predictions(str(root / "fixed.parquet")).metadata["token_cascade"] == {
        key: value for key, value in described.items() if key not in ("call_budget", "calibration")
    }


def test_next_tokens_are_scored_with_the_call_token(root, exported):
    """Offline: `call` beside the other rules; the token is in no other figure."""
    words = ["eval", "--next-token", str(root / "store"), "--out", str(root / "report")]
    for name, path in (("asks", exported), ("plain", root / "student")):
        words += ["--student", f"{name}={path}"]
    assert main(words) == 0
    summary = json.loads((root / "report" / "summary.json").read_text())
    asks, plain = (one["rules"] for one in summary["students"])
    assert list(asks) == [*plain, "call"]
    assert asks["call"]["audc"] != asks["entropy"]["audc"]
    loaded = load_for_decoding(str(exported), "--student", device="cpu")
    store = TeacherStore.open(str(root / "store"))
    rows = student_rows(loaded, store, 1)
    batch = store.read(np.array([0]))
    with torch.no_grad():
        ids = torch.from_numpy(batch.token_ids.astype(np.int64))[None]
        logits = loaded.model(ids).logits[0, batch.logit_positions].double()
    call = loaded.call_id
    odds = logits[:, call] - logits[:, :call].logsumexp(1)
    np.testing.assert_allclose(rows.call_log_odds, odds, rtol=0, atol=1e-4)
    best = logits[:, :call].log_softmax(1).amax(1)
    np.testing.assert_allclose(rows.best_logprob, best, rtol=0, atol=1e-4)


def test_mistakes_are_named(root, exported, capsys):
    def predicted(*words, model=exported):
        return main([
            "predict", "--model", str(model), "--data", str(root / "data.jsonl"), "--device", "cpu",
            "--out", str(root / "x.parquet"), "--large", str(root / "teacher"), *words,
        ])  # fmt: skip

    for words, model, facts in (
        (("--token-rule", "call"), exported, ("--call-threshold", "--call-budget")),
        (("--token-rule", "call", "--call-budget", "1"), exported, ("--call-budget 1", "less")),
        (("--token-rule", "spec", "--call-budget", ".2"), exported, ("spec", "call")),
        (
            ("--token-rule", "call", "--call-budget", ".2", "--call-threshold", "1"),
            exported,
            ("--call-threshold 1", "--call-budget 0.2"),
        ),
        (
            ("--token-rule", "call", "--call-budget", ".2"),
            root / "student",
            ("call_token_id", "--delegate"),
        ),
    ):
        assert predicted(*words, model=model) == 2
        error = capsys.readouterr().err
        assert all(fact in error for fact in facts), error

    trained = {
        ("--delegate-share", ".2"): ("--delegate",),
        ("--delegate", "loss", "--delegate-share", "1.5"): ("1.5", "less than 1"),
        ("--delegate", "l2d"): ("--objective xent", "cat-dist"),
        ("--delegate", "loss", "--objective", "alm"): ("alm", "spans"),
        ("--delegate", "loss", "--lora-rank", "2"): ("--lora-rank 2", "head"),
        ("--delegate", "loss", "--init-from", "run"): ("--init-from run", "caskd export"),
    }
    for words, facts in trained.items():
        command = ["train", "--store", "s", "--student", "m", "--out", "o", "--steps", "1", *words]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert all(fact in error for fact in facts), error


def test_a_student_with_a_call_token_or_another_tokenizer_is_refused(root, exported):
    for student in (exported, save_other(root)):
        with pytest.raises(UsageError) as error:
            train(
                TrainConfig(
                    store=(str(root / "store"),),
                    student=str(student),
                    out=root / "refused",
                    steps=1,
                    objective="xent",
                    delegate="loss",
                    dtype="float32",
                    data=(str(root / "data.jsonl"),),
                )
            )
        assert "tokenizer" in str(error.value)


def save_other(root):
    write_jsonl(root / "unused.jsonl", ragged_records(1))
    save_tiny(root / "other", seed=3)
    path = root / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["#"] = content["model"]["vocab"].pop("?")
    path.write_text(json.dumps(content))
    return root / "other"
