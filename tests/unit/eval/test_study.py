"""`caskd eval` with everything on: seeds, routers, a chain, prices, BLEU, questions."""

import csv
import json

import numpy as np
import pytest
from helpers.cascades import join_files
from helpers.tiny import write_jsonl

from caskd.cli.main import main
from caskd.eval import deferral_curve
from caskd.eval.config import EvalConfig
from caskd.eval.evaluate import evaluate
from caskd.eval.rules import ROUTERS
from caskd.eval.study import analyze
from caskd.store.errors import IdentityError, UsageError

COUNT = 240


@pytest.fixture
def files(study, tmp_path):
    """Two arms of two seeds, a model between, a large one, the questions and the prices."""
    hard = np.random.default_rng([99, 0]).uniform(size=COUNT)
    records = [
        {"prompt": f"{'hard' if h > 0.5 else 'easy'} question {i}", "response": "a b c d e"}
        for i, h in enumerate(hard)
    ]
    names = ("student", "medium", "large")
    prices = {name: {"prompt": 10**place, "output": 10**place} for place, name in enumerate(names)}
    (tmp_path / "prices.json").write_text(json.dumps(prices))
    return {
        "cat": [study(f"cat{seed}", seed=seed, model="student") for seed in (1, 2)],
        "xent": [
            study(f"xent{seed}", seed=seed + 9, skill=0.8, model="student") for seed in (1, 2)
        ],
        "medium": study("medium", seed=5, skill=1.4, parameters=40),
        "large": study("large", seed=6, skill=1.8, parameters=100),
        "data": str(write_jsonl(tmp_path / "data.jsonl", records)),
        "prices": str(tmp_path / "prices.json"),
    }


def arms(files):
    return tuple(f"{arm}={file}" for arm in ("cat", "xent") for file in files[arm])


@pytest.mark.slow
def test_everything_at_once(files, tmp_path, capsys):
    out = tmp_path / "report"
    words = [word for small in arms(files) for word in ("--small", small)]
    words += ["--chain", files["cat"][0], "--chain", files["medium"], "--large", files["large"]]
    words += ["--calibration", "0.5", "--data", files["data"], "--prices", files["prices"]]
    words += ["--bleu", "13a", "--operating-point", "quality>=0.7", "--out", str(out)]
    assert main(["eval", *words]) == 0
    printed = capsys.readouterr().out
    assert "AUDC of cat minus xent" in printed
    assert "95 % interval over examples and 2 seeds" in printed
    assert "Operating point for quality>=0.7" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert [one["label"] for one in summary["smalls"]] == [
        "cat seed 0", "cat seed 1", "xent seed 0", "xent seed 1"
    ]  # fmt: skip
    assert summary["rules_left_out"] == []
    assert set(summary["smalls"][0]["rules"]) >= {"average", "entropy", "option", *ROUTERS}
    split = summary["split"]
    assert split["num_test"] + split["num_calibration"] + split["num_fit"] == COUNT
    assert [one["num_seeds"] for one in summary["arms"]] == [2, 2]
    audc = [one["all"]["audc"] for one in summary["smalls"]]
    [difference] = summary["differences"]
    assert difference["audc_difference"] == pytest.approx(np.mean(audc[:2]) - np.mean(audc[2:]))
    assert any("2 seeds is too narrow" in warning for warning in summary["warnings"])
    assert summary["chain"]["models"] == ["student", "medium", "large"]
    assert summary["chain"]["thresholds_chosen_on"] == "calibration"
    assert {path.name for path in out.iterdir()} >= {
        "bleu.csv", "bleu.svg", "chain.csv", "chain.png", "transfer.csv", "cascade.json"
    }  # fmt: skip
    page = (out / "index.html").read_text()
    assert "easy question" in page
    assert "Chain of 3 models" in page


@pytest.mark.slow
def test_an_earlier_report_leaves_nothing_behind(files, tmp_path):
    out = tmp_path / "report"
    plain = EvalConfig(
        small=(files["cat"][0],), large=files["large"], out=str(out), rule=("average",)
    )
    more = EvalConfig(
        small=(files["cat"][0],), large=files["large"], out=str(out), rule=("average",),
        bleu="13a", operating_point="quality>=0.7",
    )  # fmt: skip
    evaluate(more)
    (out / "notes.txt").write_text("mine")
    names = {path.name for path in out.iterdir()}
    evaluate(plain)
    assert names - {path.name for path in out.iterdir()} == {
        "bleu.csv", "bleu.png", "bleu.svg", "cascade.json"
    }  # fmt: skip


def test_files_may_calibrate(study, files, tmp_path):
    other = {
        "small": study("small-cal", seed=20, first=COUNT, count=120, model="student"),
        "large": study(
            "large-cal", seed=21, skill=1.8, first=COUNT, count=120, model="large", parameters=100
        ),
    }
    config = {"small": (files["cat"][0],), "large": files["large"], "out": str(tmp_path / "r"),
              "rule": ("average", "p-ik")}  # fmt: skip
    found = analyze(EvalConfig(
        **config, calibration_small=(other["small"],), calibration_large=other["large"]
    ))  # fmt: skip
    assert found.split["num_test"] == COUNT
    assert found.split["num_calibration"] + found.split["num_fit"] == 120
    for extra, message in [
        ({"calibration_small": (other["small"],)}, "--calibration-small and --calibration-large"),
        (
            {"calibration_small": (other["small"],) * 2, "calibration_large": other["large"]},
            "--calibration-small.*got 2 .*1 small",
        ),
        (
            {"calibration_small": (files["cat"][0],), "calibration_large": files["large"]},
            "240 questions are in both",
        ),
        (
            {
                "calibration_small": (other["small"],),
                "calibration_large": other["large"],
                "calibration": 0.3,
            },
            "expected one of them",
        ),
        ({"chain": (files["medium"],)}, "--chain.* once.*expected two or more"),
        (
            {"calibration_small": (other["large"],), "calibration_large": other["large"]},
            "--calibration-small .*num_parameters is 100; expected 10",
        ),
    ]:
        with pytest.raises((UsageError, IdentityError), match=message):
            analyze(EvalConfig(**config, **extra))


def test_the_data_must_hold_every_question(files, tmp_path):
    short = write_jsonl(tmp_path / "short.jsonl", [{"prompt": "easy question 0"}])
    config = EvalConfig(
        small=(files["cat"][0],), large=files["large"], out=str(tmp_path / "r"), data=(str(short),)
    )
    with pytest.raises(IdentityError, match=r"of the 240 questions of cat1\.parquet; expected"):
        analyze(config)


def test_before_generation_costs_no_small_answer(files, tmp_path):
    config = EvalConfig(
        small=(files["cat"][0],), large=files["large"], out=str(tmp_path / "r"),
        rule=("prompt-router", "average"), data=(files["data"],), calibration=0.5,
    )  # fmt: skip
    [one] = analyze(config).results
    flops = {name: rule.main_cost for name, rule in one.rules.items()}
    assert flops["prompt-router"][[0, -1]].tolist() == [20.0, 200.0]
    assert flops["average"][[0, -1]].tolist() == [20.0, 220.0]
    large = (
        one.pair.large.numbers("prompt_tokens") + one.pair.large.numbers("output_tokens")
    ).mean()
    assert one.costs["flops"][-1] == pytest.approx(200.0 * large)


def test_the_samples_are_those_next_to_the_threshold_and_the_worst_errors(files, tmp_path):
    config = EvalConfig(
        small=(files["cat"][0],), large=files["large"], out=str(tmp_path / "r"), rule=("average",),
        operating_point="deferral_rate<=0.4",
    )  # fmt: skip
    found = analyze(config)
    score, right = found.point.scores.score, found.point.result.pair.small_quality >= 0.5
    assert np.unique(score).size == COUNT
    below, above = score < found.point.threshold, score >= found.point.threshold
    expected = {
        "kept, just": np.sort(score[below])[::-1][:8],
        "deferred, just": np.sort(score[above])[:8],
        "kept and wrong, surest": np.sort(score[below & ~right])[:4],
        "deferred though right, least sure": np.sort(score[above & right])[::-1][:4],
    }
    for side, scores in expected.items():
        rows = [row for row in found.samples if row["side"] == side]
        assert [row["score"] for row in rows] == scores.tolist(), side
    assert sum(map(len, expected.values())) == len(found.samples) == 24
    [nearest] = [row for row in found.samples if row["score"] == found.point.threshold]
    index = score.tolist().index(found.point.threshold)
    assert nearest["example"] == f"e{index}"
    assert nearest["small_quality"] == float(right[index])


def test_curves_are_thinned_and_their_figures_are_not(files, tmp_path, monkeypatch):
    monkeypatch.setattr("caskd.eval.study.measure.MAX_POINTS", 11)
    config = EvalConfig(
        small=(files["cat"][0],), large=files["large"], out=str(tmp_path / "r"), rule=("average",)
    )
    summary = evaluate(config)
    pair = join_files(files["cat"][0], files["large"])
    whole = deferral_curve(pair.score("average"), pair.small_quality, pair.large_quality)
    assert summary["smalls"][0]["all"]["audc"] == whole.audc
    assert summary["smalls"][0]["all"]["quality_at_30"] == whole.quality_at(0.3)
    assert summary["smalls"][0]["all"]["best_quality"] == whole.quality.max()
    with (tmp_path / "r" / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    for row in rows:
        place = whole.threshold.tolist().index(float(row["threshold"]))
        assert float(row["quality"]) == whole.quality[place]
