"""Routers of tokens: labels, threshold, files and refusals, against hand-made definitions."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.pairs import save_pair
from helpers.tiny import ragged_records, save_tiny, write_jsonl

from caskd.cli.main import main
from caskd.eval.answers import read_predictions
from caskd.eval.next_token.router_command import split_questions
from caskd.eval.next_token.router_fit import recall_threshold
from caskd.eval.next_token.router_rows import ACCEPTABLE_RATIO, labels_of, router_rows
from caskd.eval.next_token.teacher_forcing import student_rows
from caskd.models import SplitModel
from caskd.models.decoding import TokenCascade, load_for_decoding, open_router
from caskd.precompute import PrecomputeConfig, precompute
from caskd.store import TeacherStore
from caskd.store.errors import IdentityError, UsageError

FILES = ("router.json", "router.safetensors")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """ROOT/store of ROOT/teacher, and ROOT/student, which agrees with it on most tokens."""
    folder = tmp_path_factory.mktemp("router")
    small, large = save_pair(folder, torch.float32)
    small.rename(folder / "student")
    large.rename(folder / "teacher")
    write_jsonl(folder / "data.jsonl", ragged_records(100))
    places = {"teacher": folder / "teacher", "store": folder / "store"}
    options = {"top_k": 8, "shard_rows": 256, "dtype": "float32", "device": "cpu"}
    data = (str(folder / "data.jsonl"),)
    precompute(PrecomputeConfig(data=data, **{n: str(p) for n, p in places.items()}, **options))
    return folder


def words(root, out, **changes):
    flags = {"store": root / "store", "student": root / "student", "label": "identical"}
    flags |= {"out": out} | changes
    return ["router", "fit", *(w for name, v in flags.items() for w in (f"--{name}", str(v)))]


@pytest.fixture(scope="module")
def fitted(root):
    assert main(words(root, root / "fitted")) == 0
    return root / "fitted"


@pytest.fixture(scope="module")
def loaded(root):
    return load_for_decoding(str(root / "student"), "--student", device="cpu")


@torch.inference_mode()
def test_labels_are_those_of_the_whole_models(root, loaded):
    store = TeacherStore.open(root / "store")
    rows = router_rows(loaded, store, None)
    teacher = load_for_decoding(str(root / "teacher"), "--student", device="cpu").model
    batch = store.read(np.arange(len(store)), fields=("topk_ids", "argmax"))
    expected = {name: [] for name in ("identical", "divergent", "gap", "acceptable")}
    states = []
    for example in range(len(store)):
        tokens = batch.token_ids[slice(*batch.token_offsets[example : example + 2])]
        mine = slice(*batch.row_offsets[example : example + 2])
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        at = batch.logit_positions[mine]
        output = loaded.model(ids, output_hidden_states=True)
        states.append(output.hidden_states[-1][0, at])
        p = teacher(ids).logits[0, at].softmax(-1).numpy()
        for row, own in enumerate(output.logits[0, at].argmax(-1).tolist()):
            label, best = batch.labels[mine][row], batch.column("argmax")[mine][row]
            kept = own in batch.column("topk_ids")[mine][row]
            near = kept and p[row, own] >= ACCEPTABLE_RATIO * p[row].max()
            expected["identical"].append(own != best)
            expected["divergent"].append(own != best and not near)
            expected["gap"].append(best == label and own != label)
            expected["acceptable"].append(own != label and own != best and not near)
    torch.testing.assert_close(rows.hidden, torch.cat(states), atol=1e-4, rtol=0)
    for name, values in expected.items():
        assert 0 < sum(values) < len(values)
        np.testing.assert_array_equal(labels_of(name, rows), values, err_msg=name)


def test_the_threshold_is_the_highest_that_reaches_the_recall():
    generator = np.random.default_rng(0)
    for target in (0.5, 0.95, 1.0):
        labels = (generator.uniform(size=300) < 0.2).astype(float)
        routed = np.clip(generator.normal(0.3 + 0.3 * labels, 0.2), 0, 1)
        found = []
        for threshold in np.linspace(0.01, 0.99, 100):
            sent = routed >= threshold
            found.append(((sent & (labels > 0)).sum() / labels.sum(), threshold))
        enough = [pair for pair in found if pair[0] >= min(target, max(found)[0])]
        recall, threshold = max(enough, key=lambda pair: pair[1])
        assert recall_threshold(routed, labels, target) == pytest.approx((threshold, recall))


def test_splits_hold_whole_questions_once():
    questions = np.random.default_rng(1).integers(-50, 50, 2000)
    parts = split_questions(questions)
    np.testing.assert_array_equal(sum(part.astype(int) for part in parts.values()), 1)
    held = {name: set(questions[part]) for name, part in parts.items()}
    assert sum(map(len, held.values())) == len(set(questions))
    assert {name: len(own) for name, own in held.items()} == {
        "fit": 60, "validation": 10, "threshold": 10, "test": 20,
    }  # fmt: skip


@pytest.mark.slow
def test_a_rerun_writes_the_same_bytes_and_another_seed_does_not(root, fitted, capsys):
    assert main(words(root, root / "again")) == 0
    assert "AUROC" in capsys.readouterr().out
    assert sorted(path.name for path in (root / "again").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (root / "again" / name).read_bytes() == (fitted / name).read_bytes()
    assert main(words(root, root / "other", seed=1)) == 0
    assert (root / "other" / FILES[1]).read_bytes() != (fitted / FILES[1]).read_bytes()
    facts = json.loads((fitted / "router.json").read_text())
    assert facts["recall"] >= min(0.95, facts["recall"])
    assert facts["splits"]["threshold"]["positive"] > 0


def test_the_router_of_a_file_scores_the_rows_that_it_was_fitted_on(root, fitted, loaded):
    store = TeacherStore.open(root / "store")
    router = open_router(str(fitted), "--router")
    rows = router_rows(loaded, store, None)
    with torch.no_grad():
        embedded = loaded.model.get_input_embeddings().weight[rows.tokens]
        expected = router.network(rows.hidden, rows.top, embedded).sigmoid()
    found = student_rows(loaded, store, None, router.scorer(loaded, "--router x")).routed
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.std() > 0.01
    seen = np.isin(rows.questions, router.questions)
    parts = split_questions(rows.questions)
    np.testing.assert_array_equal(seen, ~parts["test"])
    test = router.description["test"]
    sent = (found >= router.threshold)[parts["test"]].mean()
    assert sent == pytest.approx(test["routed_share"])


def test_another_student_and_damaged_files_are_refused(root, fitted, tmp_path):
    save_tiny(tmp_path / "stranger", seed=5)
    other = load_for_decoding(str(tmp_path / "stranger"), "--student", device="cpu")
    with pytest.raises(IdentityError, match=r"--router x.*student.*stranger.*router fit"):
        open_router(str(fitted), "--router").scorer(other, "--router x")
    for name in FILES:
        shutil.copytree(fitted, tmp_path / name)
        content = (tmp_path / name / name).read_bytes()
        (tmp_path / name / name).write_bytes(content.replace(b"e", b"f", 1)[:-1])
        with pytest.raises(UsageError, match="--router"):
            open_router(str(tmp_path / name), "--router")
    with pytest.raises(UsageError, match="--router"):
        open_router(str(tmp_path), "--router")


@pytest.mark.parametrize("change", [{"threshold": 10**300}, {"blocks": 1 << 20}])
def test_a_router_that_claims_too_much_is_refused(fitted, tmp_path, change):
    shutil.copytree(fitted, tmp_path / "router")
    path = tmp_path / "router" / "router.json"
    described = json.loads(path.read_text())
    described["threshold"] = change.get("threshold", 0.5)
    described["sizes"]["blocks"] = change.get("blocks", described["sizes"]["blocks"])
    path.write_text(json.dumps(described))
    with pytest.raises(UsageError, match="--router"):
        open_router(str(tmp_path / "router"), "--router")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recall": 0}, "--recall 0"),
        ({"limit": 0}, "--limit 0"),
        ({"limit": 5}, "different questions"),
        ({"out": "student"}, "--out"),
        ({"student": "teacher", "label": "identical"}, "--label identical: 0 of"),
    ],
)
def test_mistakes_are_named(root, tmp_path, capsys, changes, named):
    changes = {n: root / v if n in ("out", "student") else v for n, v in changes.items()}
    assert main(words(root, changes.pop("out", tmp_path / "out"), **changes)) == 2
    assert named in capsys.readouterr().err


def test_the_report_measures_all_rules_on_questions_the_router_has_not_seen(root, fitted, loaded):
    flags = {"next-token": root / "store", "student": root / "student", "router": fitted}
    flags |= {"out": root / "report", "teacher-parameters": 1000}
    assert main(["eval", *(w for n, v in flags.items() for w in (f"--{n}", str(v)))]) == 0
    summary = json.loads((root / "report" / "summary.json").read_text())
    assert list(summary["students"][0]["rules"]) == [
        "log-probability", "margin", "entropy", "router",
    ]  # fmt: skip
    store, router = TeacherStore.open(root / "store"), open_router(str(fitted), "--router")
    inputs = router_rows(loaded, store, None)
    test = ~np.isin(inputs.questions, router.questions)
    assert summary["num_rows"] == test.sum() < store.spec.num_rows
    rows = student_rows(loaded, store, None, router.scorer(loaded, "--router x"))
    sent = (rows.routed >= router.threshold)[test]
    right = np.where(sent, inputs.teacher_right[test], rows.right[test]).mean()
    fine = np.where(sent, 1.0, 1.0 - labels_of("acceptable", inputs)[test]).mean()
    with open(root / "report" / "next_token_shares.csv") as file:
        table = list(csv.DictReader(file))
    [own] = [row for row in table if row["rule"] == "router, its threshold"]
    size = loaded.identity["num_parameters"] + router.num_parameters
    expected = {"large_share": sent.mean(), "accuracy": right, "acceptable": fine}
    expected["activated_parameters"] = size + 1000 * sent.mean()
    assert {name: float(own[name]) for name in expected} == pytest.approx(expected, abs=1e-9)
    by_rule = {row["rule"]: row for row in table if float(row["large_share"]) == 0.3}
    assert float(by_rule["oracle"]["accuracy"]) >= float(by_rule["router"]["accuracy"])
    assert "random" in by_rule


def test_a_router_of_another_student_is_refused_by_eval(root, fitted, tmp_path, capsys):
    flags = ["--next-token", str(root / "store"), "--router", str(fitted)]
    flags += ["--out", str(tmp_path / "report"), "--student"]
    assert main(["eval", *flags, str(root / "teacher")]) == 3
    assert f"--router {fitted}" in capsys.readouterr().err
    assert main(["eval", *flags, str(root / "teacher"), str(root / "student")]) == 2
    assert "2 students" in capsys.readouterr().err


@torch.inference_mode()
def test_cached_decoding_gives_the_router_the_inputs_of_teacher_forcing(root, fitted, loaded):
    scorer = open_router(str(fitted), "--router").scorer(loaded, "--router x")
    seen = []

    def spy(hidden, logits):
        seen.append(scorer.reader.inputs(hidden, logits))
        return scorer(hidden, logits)

    teacher = load_for_decoding(str(root / "teacher"), "--large", device="cpu")
    split, num = SplitModel(loaded.model, "--model"), 12
    for record in ragged_records(4):
        prompt = loaded.tokenizer(record["prompt"])["input_ids"]
        seen.clear()
        answer = TokenCascade(loaded, teacher, "router", 0.5, 1, router=spy).answer(prompt, num)
        text = torch.tensor([[*prompt, *answer.token_ids]])
        states = split.hidden(text)[0, len(prompt) - 1 : -1]
        expected = scorer.reader.inputs(states, split.logits(states))
        found = [torch.cat(parts) for parts in zip(*seen, strict=True)]
        assert len(found[2]) == len(answer.token_ids)
        for one, other in zip(found[:2], expected[:2], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
        assert found[2].tolist() == expected[2].tolist()
        large = [s >= 0.5 for s in scorer(states, split.logits(states)).tolist()]
        assert answer.num_large_tokens == sum(large)


def predict_words(root, out, *more):
    return [
        "predict", "--model", str(root / "student"), "--large", str(root / "teacher"),
        "--token-rule", "router", "--data", str(root / "data.jsonl"), "--out", str(out),
        "--limit", "4", "--max-new-tokens", "6", "--device", "cpu", *more,
    ]  # fmt: skip


def test_the_router_decides_in_the_decoder_at_its_own_threshold(root, fitted, tmp_path, capsys):
    out = tmp_path / "routed.parquet"
    assert main(predict_words(root, out, "--router", str(fitted))) == 0
    facts = json.loads((fitted / "router.json").read_text())
    written = read_predictions(str(out))
    described = written.metadata["token_cascade"]
    assert described["rule"] == "router"
    assert described["threshold"] == facts["threshold"]
    assert described["router"] == {
        "label": "identical", "store": facts["store"], "digest": facts["digest"],
        "offline_share": facts["test"]["routed_share"],
    }  # fmt: skip
    assert written.numbers("num_drafted").sum() == 0
    share = written.numbers("num_large_tokens").sum() / written.numbers("output_tokens").sum()
    shown = capsys.readouterr().out
    assert f"{facts['test']['routed_share']:.1%}" in shown
    assert f"in these answers {share:.1%}" in shown
    for threshold, expected in (("0", 1.0), ("1", 0.0)):
        out = tmp_path / f"at-{threshold}.parquet"
        more = ("--router", str(fitted), "--threshold", threshold)
        assert main(predict_words(root, out, *more)) == 0
        limit = read_predictions(str(out))
        large = limit.numbers("num_large_tokens").sum()
        assert large == expected * limit.numbers("output_tokens").sum()
        assert limit.metadata["token_cascade"]["router"]["offline_share"] is None


def test_a_router_that_does_not_fit_the_command_is_refused(root, fitted, tmp_path, capsys):
    out, given = tmp_path / "x.parquet", ("--router", str(fitted))
    for words, code, named in (
        (predict_words(root, out), 2, "--token-rule router"),
        (predict_words(root, out, *given, "--threshold", "1.5"), 2, "--threshold 1.5"),
        (predict_words(root, out, *given, "--token-rule", "spec"), 2, "--router"),
        (predict_words(root, out, "--router", str(tmp_path)), 2, f"--router {tmp_path}"),
        (predict_words(root, out, *given, "--model", str(root / "teacher")), 3, "student"),
    ):
        assert main(words) == code
        error = capsys.readouterr().err
        assert named in error
        assert not out.exists()
