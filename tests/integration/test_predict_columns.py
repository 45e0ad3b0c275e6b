"""What `caskd predict` stores beside the text, and how it survives kills and shares work."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.cascades import join_files
from helpers.tiny import ragged_records, save_tiny, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.cli.main import main
from caskd.eval import Cascade, PredictConfig, predict
from caskd.eval.answers import Ragged
from caskd.eval.inference import predictor
from caskd.eval.rules import Pair
from caskd.store.corpus import Columns, prompt_ids
from caskd.store.errors import IdentityError

NEW_TOKENS = 16
RECORDS = [
    {**record, "options": ["a", "b", "xyz"], "references": [record["response"], "other"]}
    if place % 3
    else record
    for place, record in enumerate(ragged_records(20))
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "small", seed=4, tie=False)


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "data.jsonl", RECORDS)


def run(model, data, out, **options):
    options = {"max_new_tokens": NEW_TOKENS, "batch_size": 4, "device": "cpu", **options}
    return predict(PredictConfig(model=str(model), data=(str(data),), out=str(out), **options))


@torch.inference_mode()
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_columns_are_those_of_a_teacher_forced_forward(small, data, tmp_path, layer):
    answers = run(small, data, tmp_path / "p.parquet", hidden=layer)
    model = AutoModelForCausalLM.from_pretrained(small).eval()
    tokenizer = AutoTokenizer.from_pretrained(small)
    for record, row in zip(RECORDS, answers.columns.to_pylist(), strict=True):
        prompt = prompt_ids(tokenizer, record, Columns())
        output = model(torch.tensor([prompt + row["token_ids"]]), output_hidden_states=True)
        steps = output.logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1]
        best = steps.topk(2, dim=-1).values
        expected = {
            "token_logprobs": best[:, 0],
            "token_margins": best[:, 0] - best[:, 1],
            "token_entropies": -(steps.exp() * steps).sum(-1),
            "hidden": output.hidden_states[layer][0, len(prompt) - 1],
        }
        for name, values in expected.items():
            np.testing.assert_allclose(row[name], values.numpy(), atol=1e-4)
        if "options" not in record:
            assert row["option_logprobs"] is row["references"] is row["options"] is None
            continue
        firsts = tokenizer.convert_tokens_to_ids(["a", "b", "x"])
        np.testing.assert_allclose(row["option_logprobs"], steps[0, firsts].numpy(), atol=1e-4)
        assert row["references"] == [row["reference"], "other"]
        assert row["options"] == record["options"]


def test_an_answer_ends_with_its_stop_text(small, data, tmp_path):
    free = run(small, data, tmp_path / "free.parquet")
    texts = free.strings("text")
    stop = next(text[4:6] for text in texts if len(text) > 8)  # of two tokens
    cut = run(small, data, tmp_path / "cut.parquet", stop=(stop,))
    assert cut.strings("text") == [text.split(stop)[0] for text in texts]
    lengths, ids = cut.numbers("output_tokens"), cut.columns["token_ids"].to_pylist()
    for place, (text, whole) in enumerate(zip(texts, free.columns["token_ids"], strict=True)):
        expected = text.index(stop) + len(stop) if stop in text else len(whole)
        assert ids[place] == whole.as_py()[:expected]
        assert lengths[place] == expected == len(cut.columns.column("token_logprobs")[place])
    assert (lengths < free.numbers("output_tokens")).any()
    assert (lengths == free.numbers("output_tokens")).any()


def test_each_task_ends_and_is_scored_in_its_own_way(small, tmp_path):
    first = ragged_records(8)
    texts = run(small, write_jsonl(tmp_path / "a.jsonl", first), tmp_path / "a.parquet").strings(
        "text"
    )
    flags = {"task_metric": ("t0=chrf", "t1=token_f1", "exact_match"), "stop": ("zzzz",)}
    known = [{**record, "response": text} for record, text in zip(first, texts, strict=True)]
    answers = run(small, write_jsonl(tmp_path / "b.jsonl", known), tmp_path / "b.parquet", **flags)
    assert answers.numbers("quality").tolist() == pytest.approx([1.0] * 8)
    assert answers.metadata["quality"] == "chrf (t0); exact_match (t2); token_f1 (t1)"
    assert answers.metadata["tasks"]["t0"] == {
        "metric": "chrf",
        "normalize": None,
        "stop": ["zzzz"],
    }
    assert answers.metadata["decoding"]["stop"] == ["zzzz"]


def test_data_with_a_list_of_right_answers_needs_no_other_column(small, tmp_path):
    records = [{"prompt": "a", "answers": ["x", "y"]}, {"prompt": "b", "answers": ["z"]}]
    data = write_jsonl(tmp_path / "d.jsonl", records)
    answers = run(small, data, tmp_path / "p.parquet", references_column="answers")
    assert answers.strings("reference") == ["x", "z"]
    assert answers.references() == [["x", "y"], ["z"]]


def test_other_references_are_other_examples(small, data, tmp_path):
    ours = run(small, data, tmp_path / "a.parquet")
    changed = [dict(record) for record in RECORDS]
    changed[4]["references"] = [changed[4]["response"], "another"]
    theirs = run(small, write_jsonl(tmp_path / "e.jsonl", changed), tmp_path / "b.parquet")
    with pytest.raises(IdentityError, match=r"1 examples \(first '4'\) differ in reference"):
        Pair(ours, theirs)


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture
def stopped_clock(monkeypatch):
    """Seconds are the one column that differs from run to run."""
    monkeypatch.setattr(predictor.time, "perf_counter", lambda: 0.0)


def kill_after(monkeypatch, num_batches):
    decode, left = predictor.decode_batch, [num_batches]

    def decode_or_die(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return decode(*args, **options)

    monkeypatch.setattr(predictor, "decode_batch", decode_or_die)


@pytest.mark.usefixtures("stopped_clock")
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    small, data, tmp_path, monkeypatch, capsys
):
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    run(small, data, whole, hidden=1)
    for _ in range(2):
        with monkeypatch.context() as patch:
            kill_after(patch, 2)
            with pytest.raises(Killed):
                run(small, data, killed, hidden=1)
    assert len(list(tmp_path.glob("killed.parquet.parts/0*.parquet"))) == 4
    with pytest.raises(IdentityError, match=r"decoding\.batch_size is 4 there but 5 now;.* rerun"):
        run(small, data, killed, hidden=1, batch_size=5)
    with monkeypatch.context() as patch:
        kill_after(patch, 1)  # the last batch, and no other one, is still to be answered
        run(small, data, killed, hidden=1)
    assert "16 of 20 examples" in capsys.readouterr().out
    assert killed.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "killed.parquet.parts").exists()
    with monkeypatch.context() as patch:
        kill_after(patch, 0)
        assert len(run(small, data, killed, hidden=1)) == len(RECORDS)  # finished: nothing to do


@pytest.mark.usefixtures("stopped_clock")
def test_workers_join_to_the_same_bytes(small, data, tmp_path, capsys):
    run(small, data, tmp_path / "one.parquet")
    shared = tmp_path / "three.parquet"
    for worker in (2, 0):
        assert run(small, data, shared, worker=worker, num_workers=3) is None
    assert "2 of 5 parts are missing" in capsys.readouterr().out
    assert run(small, data, shared, worker=1, num_workers=3) is not None
    assert shared.read_bytes() == (tmp_path / "one.parquet").read_bytes()


def test_no_path_and_every_digest(small, data, tmp_path):
    run(small, data, tmp_path / "p.parquet")
    header = json.loads(pq.read_schema(tmp_path / "p.parquet").metadata[b"caskd"])
    assert header["model"]["weights_digest"]
    assert header["model"]["tokenizer_digest"]
    assert header["model"]["template_digest"] is None  # no chat template
    assert set(header["versions"]) == {"torch", "transformers"}
    assert str(tmp_path) not in json.dumps(header)


def test_rules_of_every_column_and_a_cascade_that_stops_likewise(small, tmp_path, capsys):
    records = [
        {"prompt": one["prompt"], "response": one["response"], "options": ["a", "b"]}
        for one in ragged_records(30)
    ]
    data = write_jsonl(tmp_path / "d.jsonl", records)
    large = save_tiny(tmp_path / "large", seed=9, tie=False, layers=3)
    stop = run(small, data, tmp_path / "free.parquet", limit=1).strings("text")[0][2]
    for model in (small, large):
        words = ["--model", str(model), "--data", str(data), "--stop", stop, "--device", "cpu",
                 "--task-metric", "chrf", "--max-new-tokens", "8", "--hidden", "-1"]  # fmt: skip
        assert main(["predict", *words, "--out", str(tmp_path / f"{model.name}.parquet")]) == 0
    files = [str(tmp_path / name) for name in ("small.parquet", "large.parquet")]
    words = ["--small", files[0], "--large", files[1], "--out", str(tmp_path / "report")]
    assert main(["eval", *words, "--operating-point", "deferral_rate<=0.5"]) == 0
    capsys.readouterr()
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert {"option", "margin", "entropy"} <= summary["smalls"][0]["rules"].keys()
    stored = join_files(*files).small
    cascade = Cascade.load(
        str(tmp_path / "report" / "cascade.json"), small=str(small), device="cpu",
        large=lambda prompts: ["large"] * len(prompts),
    )  # fmt: skip
    for text, answer in zip(
        stored.strings("text"), cascade.answer([one["prompt"] for one in records]), strict=True
    ):
        assert answer.text == (text if answer.answered_by == "small" else "large")
        assert stop not in answer.text or answer.answered_by == "large"
    assert Ragged.of_column(stored.columns["hidden"]).width() == 32
