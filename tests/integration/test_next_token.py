"""Next tokens of a cascade, straight from a store: against the whole model's own logits."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers.tiny import save_tiny
from helpers.training import capture
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from caskd.cli.main import main
from caskd.eval.config import RouterFitConfig
from caskd.eval.curves import deferral_curve
from caskd.eval.next_token import router_fit_command
from caskd.eval.next_token.measure import example_replicates
from caskd.eval.next_token.teacher_forcing import (
    _tile_values,
    draft_acceptance,
    store_rows,
    student_rows,
)
from caskd.models.decoding import load_for_decoding
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import TeacherStore
from caskd.store.errors import IdentityError, UsageError

NUM = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """ROOT/store with ROOT/teacher and ROOT/student."""
    root = tmp_path_factory.mktemp("next")
    capture(root, num=NUM)
    return root


@pytest.fixture(scope="module")
def store(root):
    return TeacherStore.open(root / "store")


def load(folder):
    return load_for_decoding(str(folder), "--student", device="cpu")


@torch.inference_mode()
def test_rows_are_those_of_the_whole_model_one_example_at_a_time(root, store, monkeypatch):
    monkeypatch.setattr("caskd.eval.next_token.teacher_forcing.TILE_ROWS", 7)
    monkeypatch.setattr("caskd.eval.next_token.teacher_forcing.TOKEN_BUDGET", 100)
    rows = student_rows(load(root / "student"), store, None)
    model = AutoModelForCausalLM.from_pretrained(root / "student").eval()
    teacher = AutoModelForCausalLM.from_pretrained(root / "teacher").eval()
    batch, start = store.read(np.arange(len(store))), 0
    for example in range(len(store)):
        tokens = batch.token_ids[slice(*batch.token_offsets[example : example + 2])]
        mine = slice(*batch.row_offsets[example : example + 2])
        steps = (
            model(torch.from_numpy(tokens.astype(np.int64))[None])
            .logits[0]
            .double()
            .log_softmax(-1)
        )
        steps = steps[batch.logit_positions[mine]].numpy()
        drafted = np.exp(steps)
        checked = teacher(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].softmax(-1)
        overlap = np.minimum(drafted, checked[batch.logit_positions[mine]].numpy()).sum(axis=1)
        labels, here = batch.labels[mine], slice(start, start + len(steps))
        ordered = np.sort(steps, axis=1)
        expected = {
            "right": steps.argmax(axis=1) == labels,
            "label_logprob": steps[np.arange(len(steps)), labels],
            "best_logprob": ordered[:, -1],
            "margin": ordered[:, -1] - ordered[:, -2],
            "entropy": -(np.exp(steps) * steps).sum(axis=1),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(rows, name)[here], values, atol=1e-4, err_msg=name)
        assert (rows.acceptance_low[here] <= overlap + 2e-3).all()  # of the store's rounding
        assert (rows.acceptance_high[here] >= overlap - 2e-3).all()
        start += len(steps)
    assert start == store.spec.num_rows == len(rows.right)


def test_the_teacher_as_its_own_student_repeats_the_store(root, store):
    teacher, rows = store_rows(store, None), student_rows(load(root / "teacher"), store, None)
    assert 0 < teacher.right.mean() < 1
    np.testing.assert_array_equal(rows.right, teacher.right)
    np.testing.assert_allclose(rows.label_logprob, teacher.label_logprob, atol=5e-3)  # 2^-8
    curve = deferral_curve(-rows.best_logprob, rows.right, teacher.right)
    np.testing.assert_allclose(curve.quality, teacher.right.mean(), atol=1e-12)


@pytest.mark.parametrize("num_kept", [0, 1, 8, 32, 40])
def test_the_acceptance_of_the_whole_distributions_lies_between_the_bounds(num_kept):
    generator = torch.Generator().manual_seed(num_kept)
    logits = 2 * torch.randn(2, 300, 40, generator=generator, dtype=torch.float64)
    logits[1] += logits[0]
    q, p = logits.softmax(-1)
    kept, ids = p.topk(40, dim=-1)
    kept[:, num_kept:] = 0.0
    low, high = draft_acceptance(logits[0], ids, kept)
    true = torch.minimum(q, p).sum(-1)
    assert bool((low <= true + 1e-12).all())
    assert bool((true <= high + 1e-12).all())
    stored, p_outside = ids[:, :num_kept], 1 - kept.sum(-1)
    q_outside = 1 - q.gather(-1, stored).sum(-1)
    # Outside of the stored tokens, at best the smaller mass overlaps, and at worst nothing.
    width = torch.minimum(p_outside, q_outside)
    torch.testing.assert_close(high - low, width, atol=1e-12, rtol=0)


def test_ties_go_to_the_lowest_id():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]] * 3)
    right, at_label, best, margin, _ = _tile_values(logits, torch.tensor([1, 2, 0]))
    assert right.tolist() == [1.0, 0.0, 0.0]
    assert margin.tolist() == [0.0] * 3
    assert at_label[0] == at_label[1] == best[0]


def test_intervals_redraw_whole_examples():
    generator = np.random.default_rng(0)
    examples = np.repeat(np.arange(60), 20)
    hard = np.repeat(generator.uniform(size=60), 20)  # rows of an example are hard together
    small = (generator.uniform(size=1200) > hard).astype(float)
    large = (generator.uniform(size=1200) > hard / 4).astype(float)
    score = hard + generator.normal(scale=0.1, size=1200)
    together = example_replicates(score, small, large, examples)["audc"]
    alone = example_replicates(score, small, large, np.arange(1200))["audc"]
    exact = []  # the same by hand: whole examples drawn with replacement
    for _ in range(400):
        rows = (generator.integers(0, 60, 60)[:, None] * 20 + np.arange(20)).ravel()
        exact.append(deferral_curve(score[rows], small[rows], large[rows]).audc)
    assert together.mean() == pytest.approx(deferral_curve(score, small, large).audc, abs=0.01)
    assert together.std() == pytest.approx(np.std(exact), rel=0.15)
    assert together.std() > 1.5 * alone.std()


def test_the_command_from_store_to_report(root, tmp_path, capsys):
    folders = {name: str(root / name) for name in ("student", "teacher")}
    words = ["eval", "--next-token", str(root / "store"), "--out", str(tmp_path / "report")]
    words += ["--student", folders["student"], "--student", f"same={folders['teacher']}"]
    assert main(words) == 0
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["num_examples"] == NUM
    student, same = summary["students"]
    assert (student["label"], same["label"]) == ("student", "same")
    figures = same["rules"]["log-probability"]
    assert figures["quality_small"] == pytest.approx(summary["teacher"]["accuracy"])
    assert figures["audc"] == pytest.approx(figures["quality_small"])
    assert set(student["tasks"]) == {"t0", "t1", "t2"}
    assert "AUDC of student minus same" in out
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"index.html", "next_token.png", "next_token.svg", "next_token_curve.csv"} <= files
    assert str(root) not in "".join(
        path.read_text() for path in (tmp_path / "report").glob("*.[hcj]*")
    )
    assert main([*words, "--limit", "3"]) == 0  # a report may replace a report
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["num_examples"] == 3


def test_students_of_one_name_are_seeds(root, tmp_path, capsys):
    student, teacher = (
        str(save_tiny(tmp_path / "student", seed=5, tie=False)),
        str(root / "teacher"),
    )
    words = ["eval", "--next-token", str(root / "store"), "--out", str(tmp_path / "report")]
    for one in (f"cat={student}", f"xent={teacher}", f"cat={teacher}", f"xent={student}", student):
        words += ["--student", one]
    assert main(words) == 0
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    labels = ["cat seed 0", "xent seed 0", "cat seed 1", "xent seed 1", "student"]
    assert [one["label"] for one in summary["students"]] == labels
    assert [one["arm"] for one in summary["students"]] == ["cat", "xent", "cat", "xent", "student"]
    same, alone, _ = summary["differences"]
    area = {one["label"]: one["rules"]["log-probability"]["audc"] for one in summary["students"]}
    apart = area["cat seed 0"] - area["xent seed 0"]  # and the same with the other sign at seed 1
    assert same["audc_difference"] == pytest.approx(0.0, abs=1e-12)
    assert (
        same["seed_high"] == -same["seed_low"] == pytest.approx(abs(apart) * stats.t.ppf(0.975, 1))
    )
    assert (same["seed_interval"], same["num_seeds"]) == ("paired t", 2)
    assert same["low"] < 0.0 < same["high"]
    assert (alone["first"], alone["second"], alone["seed_low"]) == ("cat", "student", None)
    found = {one["measure"]: one for one in summary["contrasts"] if one["second"] == "student"
             and one["first"] == "cat"}  # fmt: skip
    assert set(found) == {"audc", "quality_small", "audc_over_random"}
    small = summary["students"][-1]["rules"]["log-probability"]["quality_small"]
    assert small != summary["teacher"]["accuracy"]
    lead = summary["teacher"]["accuracy"] - small  # of the teacher, one of the two seeds
    assert found["quality_small"]["difference"] == pytest.approx(lead / 2)
    gain = alone["audc_difference"] - lead / 4
    assert found["audc_over_random"]["difference"] == pytest.approx(gain)
    with (tmp_path / "report" / "differences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["measure"] for row in rows] == [one["measure"] for one in summary["contrasts"]]
    with (tmp_path / "report" / "next_token.csv").open(newline="") as file:
        seeds = {(row["arm"], row["seed"]) for row in csv.DictReader(file)}
    assert seeds == {(a, s) for a in ("cat", "xent") for s in "01"} | {("student", "0")}
    assert "over seeds alone" in capsys.readouterr().out


def other_vocabulary(root, tmp_path):
    folder = save_tiny(tmp_path / "other", seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zz"])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_student_of_another_vocabulary_is_refused(root, store, tmp_path):
    with pytest.raises(IdentityError, match="expected a student with the teacher's tokenizer"):
        student_rows(load(other_vocabulary(root, tmp_path)), store, None)


def test_a_store_of_draws_is_refused(root, tmp_path):
    options = {"teacher": str(root / "teacher"), "data": (str(root / "data.jsonl"),)}
    drawn = tmp_path / "drawn"
    precompute(PrecomputeConfig(**options, store=str(drawn), sample=4, device="cpu"))
    with pytest.raises(UsageError, match=r"kind 'sampled'.*expected kind 'topk'"):
        store_rows(TeacherStore.open(drawn), None)
    asked = {"store": str(drawn), "student": str(root / "student"), "out": str(tmp_path / "router")}
    with pytest.raises(UsageError, match=r"^--store .*drawn: a store of kind 'sampled'"):
        router_fit_command(RouterFitConfig(label="gap", **asked))


def test_an_unknown_treatment_of_logits_is_noticed(root, store):
    loaded = load(root / "student")
    forward = loaded.model.forward

    def squared(*args, **options):
        output = forward(*args, **options)
        output.logits = output.logits + output.logits.square()
        return output

    loaded.model.forward = squared
    with pytest.raises(
        UsageError, match=r"--student student: LlamaForCausalLM changes the product"
    ):
        student_rows(loaded, store, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--next-token", "STORE"],
            "--next-token: no student; expected at least one; pass --student DIR",
        ),
        (
            ["--next-token", "STORE", "--student", "S", "--large", "x"],
            "--next-token: was given with --large",
        ),
        (
            ["--next-token", "STORE", "--student", "S", "--calibration", "0.3", "--rule", "sum"],
            "--next-token: was given with --rule, --calibration",
        ),
        (
            ["--next-token", "STORE", "--student", "S", "--limit", "0"],
            "--limit 0: expected 1 or more",
        ),
        (["--next-token", "nowhere", "--student", "S"], "nowhere: no store.json"),
        (["--small", "x.parquet"], "pass --large FILE"),
        (["--small", "x", "--large", "y", "--student", "S"], "add --next-token STORE"),
    ],
)
def test_mistakes_of_users(root, tmp_path, capsys, words, message):
    places = {"STORE": str(root / "store"), "S": str(root / "student")}
    words = [places.get(word, word) for word in words]
    assert main(["eval", *words, "--out", str(tmp_path / "report")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report").exists()
