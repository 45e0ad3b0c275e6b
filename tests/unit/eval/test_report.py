"""The report: every number in its place, hostile names defused, nothing overwritten by mistake."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.cascades import file_curve, join_files
from markupsafe import escape

from caskd.eval.config import EvalConfig
from caskd.eval.evaluate import evaluate
from caskd.store.errors import IdentityError, UsageError
from caskd.store.io import csv_cell, plot_label, strip_control

FILES = {
    "index.html", "summary.json", "summary.csv", "curve.csv", "rules.csv", "rule_curves.csv",
    "differences.csv", "seeds.csv", "seconds.csv", "samples.csv",
    *(f"{name}.{kind}" for name in ("deferral_curve", "a1_a2", "rules", "cost")
      for kind in ("png", "svg")),
}  # fmt: skip
HOSTILE = "<script>alert(1)</script> $x_1$ \x1b[31m\u202ered"


def outcomes(seed, share, count=60):
    return (np.random.default_rng(seed).uniform(size=count) < share).astype(int)


@pytest.fixture
def three(predictions_file):
    """Two small models, one with a hostile name, and a large one."""
    first = predictions_file("first", outcomes(1, 0.4), model=HOSTILE, parameters=10)
    second = predictions_file("second", outcomes(2, 0.5), model="=SUM(A1)", parameters=20)
    large = predictions_file("large", outcomes(3, 0.9), model="large", parameters=100)
    return first, second, large


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_numbers_are_those_of_the_curves(tmp_path, three):
    first, second, large = three
    out = tmp_path / "report"
    summary = evaluate(EvalConfig(small=(first, second), large=large, out=str(out)))
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "summary.json").read_text()) == summary
    for small, one in zip((first, second), summary["smalls"], strict=True):
        curve = file_curve(small, large)
        assert one["all"]["audc"] == curve.audc
        assert one["all"]["apgr"] == curve.apgr
        assert set(one["tasks"]) == {"sort", "sum"}
        assert one["tasks"]["sum"]["audc"] == file_curve(small, large, task="sum").audc
    [difference] = summary["differences"]
    audc = [one["all"]["audc"] for one in summary["smalls"]]
    assert difference["audc_difference"] == audc[0] - audc[1]
    assert difference["low"] <= difference["audc_difference"] <= difference["high"]
    assert difference["seed"] == 0
    [test] = summary["at_one_rate"]
    right = []
    for small in (first, second):
        pair = join_files(small, large)
        score = pair.score("average")
        most = np.sort(score)[::-1][: int(0.3 * len(pair))]  # no two scores are equal
        deferred = score >= most[-1]
        right.append(np.where(deferred, pair.large_quality, pair.small_quality) == 1.0)
    assert test["only_first"] == (right[0] & ~right[1]).sum()
    assert test["only_second"] == (right[1] & ~right[0]).sum()
    rows = read_csv(out / "summary.csv")
    assert [row["task"] for row in rows] == ["all", "sort", "sum"] * 2
    assert float(rows[0]["audc"]) == audc[0]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.slow
def test_every_point_is_in_the_csv(tmp_path, three):
    first, _, large = three
    evaluate(EvalConfig(small=(first,), large=large, out=str(tmp_path / "report")))
    rows = read_csv(tmp_path / "report" / "curve.csv")
    curve = file_curve(first, large)
    assert [float(row["quality"]) for row in rows] == curve.quality.tolist()
    assert [float(row["threshold"]) for row in rows] == curve.threshold.tolist()
    assert float(rows[0]["flops_per_token"]) == 20.0
    assert float(rows[-1]["flops_per_token"]) == 220.0
    # Prompts have 3, 4, ... 62 tokens and answers 2: 34.5 tokens an example on average.
    assert float(rows[-1]["flops_per_example"]) == pytest.approx(34.5 * 220.0)


@pytest.mark.slow
def test_a_report_replaces_a_report_and_is_the_same_byte_for_byte(tmp_path, three):
    first, second, large = three
    config = EvalConfig(small=(first, second), large=large, out=str(tmp_path / "report"))
    evaluate(config)
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    evaluate(config)
    assert {p.name: p.read_bytes() for p in (tmp_path / "report").iterdir()} == before


@pytest.mark.usefixtures("without_figures")
@pytest.mark.slow
def test_files_of_an_earlier_report_are_removed_and_no_others(tmp_path, three):
    first, _, large = three
    out = tmp_path / "report"
    evaluate(EvalConfig(small=(first,), large=large, out=str(out), bleu="13a"))
    assert {path.name for path in out.iterdir()} == FILES | {"bleu.csv", "bleu.png", "bleu.svg"}
    (out / "notes.csv").write_text("mine")
    for name in ("cascade.json", "chain.csv", "transfer.csv", "next_token.svg", "next_token.csv",
                 "next_token_rules.csv", "next_token_curve.csv"):  # fmt: skip
        (out / name).write_text("old")
    evaluate(EvalConfig(small=(first,), large=large, out=str(out)))
    assert {path.name for path in out.iterdir()} == FILES | {"notes.csv"}


def test_other_folders_and_files_are_left_alone(tmp_path, three):
    first, _, large = three
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty and not a report"):
        evaluate(EvalConfig(small=(first,), large=large, out=str(tmp_path / "mine")))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="is a file"):
        evaluate(EvalConfig(small=(first,), large=large, out=first))


def test_nothing_is_written_for_predictions_that_do_not_fit(tmp_path, three, predictions_file):
    first, _, large = three
    short = predictions_file("short", [1, 0])
    with pytest.raises(IdentityError, match="only in large"):
        evaluate(EvalConfig(small=(first, short), large=large, out=str(tmp_path / "report")))
    with pytest.raises(UsageError, match="does not exist"):
        evaluate(EvalConfig(small=(first,), large="no.parquet", out=str(tmp_path / "report")))
    assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("without_figures")
def test_a_large_model_that_does_not_lead_is_said_in_words(tmp_path, predictions_file, capsys):
    small = predictions_file("small", [1, 0, 1, 0])
    large = predictions_file("large", [1, 0, 0, 1])
    summary = evaluate(EvalConfig(small=(small,), large=large, out=str(tmp_path / "report")))
    [warning] = summary["warnings"]
    assert "lead over model is 0.0 points, less than 5" in warning
    assert summary["smalls"][0]["all"]["apgr"] is None
    assert "Warning: The large model's lead" in capsys.readouterr().out
    assert escape(warning) in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.usefixtures("without_figures")
@pytest.mark.slow
def test_models_of_one_name_are_told_apart_by_their_files(tmp_path, predictions_file):
    files = [predictions_file(name, outcomes(7, 0.5)) for name in ("xent", "cat")]
    large = predictions_file("large", outcomes(8, 0.9))
    config = EvalConfig(small=(*files, files[0]), large=large, out=str(tmp_path / "report"))
    labels = [one["label"] for one in evaluate(config)["smalls"]]
    assert labels == ["model (xent) #1", "model (cat)", "model (xent) #3"]


def test_a_name_that_the_font_lacks_is_no_error(tmp_path, predictions_file):
    small = predictions_file("small", [1, 0, 1, 0], model="小模型")
    large = predictions_file("large", [1, 1, 1, 0])
    evaluate(EvalConfig(small=(small,), large=large, out=str(tmp_path / "report")))
    assert (tmp_path / "report" / "deferral_curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "小模型" in (tmp_path / "report" / "index.html").read_text()


def test_text_is_shown_safely():
    assert strip_control("a\x1b[2Jb\u202ec\n") == "a[2Jbc"
    assert csv_cell("=1+1") == "'=1+1"
    assert csv_cell("a=1") == "a=1"
    assert plot_label("_$a$") == r" _\$a\$"


def test_importing_the_configuration_loads_no_model_library():
    import subprocess
    import sys

    code = (
        "import sys, caskd.eval.config, caskd.eval\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "caskd.eval.deferral_curve, caskd.eval.Cascade\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


@pytest.mark.usefixtures("without_figures")
def test_the_page_says_how_a_mixture_is_counted(tmp_path, predictions_file):
    models = {
        "small": {"name": "sparse", "num_parameters": 90, "num_active_parameters": 20},
        "large": {"name": "unnamed", "num_parameters": 400, "num_active_parameters": None},
    }
    files = {
        name: predictions_file(name, outcomes(4, 0.5), metadata={"model": model})
        for name, model in models.items()
    }
    out = tmp_path / "report"
    config = EvalConfig(small=(files["small"],), large=files["large"], out=str(out))
    summary = evaluate(config)
    page = (out / "index.html").read_text()
    assert "sparse is a mixture of experts: its cost counts the 20 of its 90 parameters" in page
    assert "unnamed is a mixture of experts whose config does not name" in page
    assert "counts all 400 parameters" in page
    assert summary["smalls"][0]["num_parameters"] == 90
    assert summary["smalls"][0]["num_active_parameters"] == 20
    curve = read_csv(out / "curve.csv")
    costs = [float(row["flops_per_token"]) for row in curve]
    assert (min(costs), max(costs)) == (2 * 20, 2 * 20 + 2 * 400)
