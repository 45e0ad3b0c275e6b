"""Outcome tables: the figures are those of the columns, in every file type."""

import csv
import json

import numpy as np
import pytest
from helpers.outcome_tables import COST, COUNT, LARGE, SCORE, SMALL, config, measure, rows, write

from caskd.cli.main import main
from caskd.eval import deferral_curve
from caskd.eval.curves import arena_score
from caskd.eval.evaluate import evaluate
from caskd.eval.outcomes import read_table
from caskd.eval.serving.cascade_file import read_cascade
from caskd.store.errors import UsageError

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_the_figures_are_those_of_the_columns_in_any_order(tmp_path, name):
    table = rows()
    shuffled = [table[i] for i in np.random.default_rng(0).permutation(len(table))]
    summary = measure(tmp_path, shuffled, name, target_quality=0.7)
    curve = deferral_curve(SCORE, SMALL, LARGE)
    one = summary["smalls"][0]
    assert one["all"]["audc"] == pytest.approx(curve.audc, abs=1e-12)
    even = deferral_curve(SCORE[::2], SMALL[::2], LARGE[::2])
    assert one["tasks"]["even"]["audc"] == pytest.approx(even.audc, abs=1e-12)
    assert one["mean_cost"] == pytest.approx(COST["tiny"].mean())
    assert summary["cost_unit"] == "cost per example"
    # The cost at the target: that of every answer given at the rate that reaches it.
    rate = curve.rate_for(0.7)
    along = [
        COST["tiny"].mean() + COST["big"][threshold <= SCORE].sum() / COUNT
        for threshold in curve.threshold
    ]
    assert summary["arms"][0]["cost_at_quality"] == pytest.approx(
        np.interp(rate, curve.deferral_rate, along)
    )


def test_infinite_scores_are_one_block_that_is_deferred_first(tmp_path, capsys):
    score = SCORE.copy()
    score[:7] = np.inf
    table = rows()
    for i, row in enumerate(table[:COUNT]):
        row["score"] = score[i]
    file, out = write(tmp_path / "t.jsonl", table), tmp_path / "out"
    words = f"eval --outcomes {file} --small tiny --large big --out {out}".split()
    assert main(words) == 0
    assert "tiny" in capsys.readouterr().out
    assert main([*words, "--next-token", "store", "--student", "s"]) == 2
    assert "cost there" in (out / "index.html").read_text()
    with (tmp_path / "out" / "curve.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert float(points[1]["deferral_rate"]) == 7 / COUNT
    first = score == np.inf
    assert float(points[1]["quality"]) == pytest.approx(np.where(first, LARGE, SMALL).mean())
    costs = COST["tiny"] + np.where(first, COST["big"], 0.0)
    assert float(points[1]["cost_per_example"]) == pytest.approx(costs.mean())
    assert {"flops_per_token", "seconds_per_example"}.isdisjoint(points[0])


def test_confidence_is_a_score_with_the_sign_turned(tmp_path):
    shown = 1 / (1 + np.exp(SCORE))
    table = rows(score=None)
    for row, value in zip(table, [*shown, *[""] * COUNT], strict=True):
        row["confidence"] = value
        del row["score"]
    one = measure(tmp_path, table)["smalls"][0]
    assert list(one["rules"]) == ["confidence"]
    assert one["all"]["audc"] == pytest.approx(deferral_curve(SCORE, SMALL, LARGE).audc, abs=1e-12)
    # Expected calibration error over the report's 15 bins, by hand.
    bins = np.minimum((shown * 15).astype(int), 14)
    gaps = [abs((shown - SMALL)[bins == b].sum()) for b in range(15)]
    assert one["all"]["ece"] == pytest.approx(sum(gaps) / COUNT)


def test_rows_without_the_key_of_an_absent_value_may_come_first(tmp_path):
    table = [{k: v for k, v in row.items() if v is not None} for row in reversed(rows())]
    assert "score" not in table[0]
    one = measure(tmp_path, table, "t.jsonl")["smalls"][0]
    assert one["all"]["audc"] == pytest.approx(deferral_curve(SCORE, SMALL, LARGE).audc, abs=1e-12)
    for row in table[-2:]:
        row["confidence"] = row.pop("score")
    with pytest.raises(UsageError, match=r"score.*confidence"):
        measure(tmp_path, table, "t.jsonl")
    del table[5]["quality"]
    with pytest.raises(UsageError, match=r"line 6: quality is None"):
        measure(tmp_path, table, "t.jsonl")


def test_a_table_without_scores_is_one_block(tmp_path):
    table = [{k: v for k, v in row.items() if k not in ("score", "cost")} for row in rows()]
    summary = measure(tmp_path, table, operating_point="deferral_rate<=0.5")
    assert summary["smalls"][0]["all"]["audc"] == pytest.approx((SMALL + LARGE).mean() / 2)
    assert summary["rule"] == "none"
    assert summary["cost_unit"] == "calls of the large model per example"
    assert summary["operating_point"]["expected"]["cost"]["mean"] == 0.0
    assert any("random line" in warning for warning in summary["warnings"])


def test_samples_of_one_question_stay_together(tmp_path):
    table = [
        {**row, "quality": float(sample == 0) if row["model"] == "tiny" else row["quality"]}
        for row in rows()
        for sample in range(3 if row["model"] == "tiny" else 1)
    ]
    summary = measure(tmp_path, table, calibration=0.5)
    assert summary["num_questions"] * 3 == summary["split"]["num_test"]
    assert summary["split"]["num_test"] + summary["split"]["num_calibration"] == 3 * COUNT
    assert summary["smalls"][0]["all"]["quality_small"] == pytest.approx(1 / 3)
    with pytest.raises(UsageError, match=r"q0.*tiny.* 2 .*3"):
        measure(tmp_path, [row for i, row in enumerate([*table, *rows()[COUNT:] * 2]) if i != 1])


def test_the_kth_samples_of_two_models_are_one_example(tmp_path):
    table = [
        {"example_id": "q", "model": model, "quality": value, "score": value}
        for model, values in (("tiny", (1, 0, 0)), ("big", (0, 1, 0)))
        for value in values
    ]
    found = read_table((write(tmp_path / "t.csv", table),), ("tiny",), "big", None)
    assert found.models["tiny"].numbers("quality").tolist() == [1.0, 0.0, 0.0]
    assert found.models["big"].numbers("quality").tolist() == [0.0, 1.0, 0.0]


def test_examples_of_one_model_only_are_left_out_and_counted(tmp_path):
    table = rows()
    summary = measure(tmp_path, table[3 : COUNT + 35])  # tiny lacks 3, big another 5
    assert summary["split"]["num_test"] == COUNT - 8
    assert summary["outcomes"]["num_incomplete"] == 8
    assert any("8 examples" in warning for warning in summary["warnings"])


def test_tables_may_be_one_file_per_model_and_have_latency(tmp_path):
    table = [{**row, "latency_ms": 500.0 if row["model"] == "tiny" else 2000.0} for row in rows()]
    files = tuple(
        write(tmp_path / name, [row for row in table if row["model"] == model])
        for name, model in (("a.csv", "tiny"), ("b.parquet", "big"))
    )
    summary = evaluate(config(tmp_path, files, operating_point="quality>=0.7"))
    point = summary["operating_point"]["expected"]
    assert point["seconds"] == pytest.approx(0.5 + 2.0 * point["deferral_rate"]["mean"])
    assert (tmp_path / "out" / "seconds.csv").exists()
    with pytest.raises(UsageError, match="outcome table"):
        read_cascade(str(tmp_path / "out" / "cascade.json"))


def test_a_price_list_prices_the_tokens_of_a_table(tmp_path):
    table = [{**row, "prompt_tokens": 1000, "output_tokens": 500} for row in rows()]
    for row in table:
        del row["cost"]
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({m: {"prompt": 2.0, "output": 4.0} for m in ("tiny", "big")}))
    summary = measure(tmp_path, table, prices=str(prices))
    assert summary["large"]["mean_cost"] == pytest.approx((2000 + 2000) / 1e6)
    assert summary["cost_unit"] == "money per example"
    with pytest.raises(UsageError, match=r"--prices.*cost"):
        measure(tmp_path, rows(), prices=str(prices))


def test_an_operating_point_and_a_chain_use_the_cost_column(tmp_path):
    middle = [{**row, "model": "mid", "cost": 4.0} for row in rows()[:COUNT]]
    bound = float(COST["tiny"].mean() + 5.0)
    summary = measure(
        tmp_path, [*rows(), *middle], operating_point=f"cost<={bound}", chain=("tiny", "mid")
    )
    expected = summary["operating_point"]["expected"]
    assert expected["cost"]["mean"] <= bound
    assert expected["cost"]["unit"] == "cost per example"
    first = summary["chain"]["points"][0]
    assert first["cost"] == pytest.approx(COST["tiny"].mean())
    assert summary["chain"]["models"] == ["tiny", "mid", "big"]
    # mid has tiny's answers and costs more.
    beaten = [(one["better"], one["worse"]) for one in summary["do_not_cascade"]]
    assert beaten == [("tiny", "mid")]
    free = [{k: v for k, v in row.items() if k != "cost"} for row in [*rows(), *middle]]
    with pytest.raises(UsageError, match=r"--chain.*cost"):
        measure(tmp_path, free, small=(), chain=("tiny", "mid"))


def test_cached_results_of_router_arena_are_recognised(tmp_path):
    files = []
    for model, quality in (("tiny", SMALL), ("big", LARGE)):
        lines = [
            {
                "global_index": f"AIME_{i}", "question": "?", "llm_selected": model,
                "generated_answer": "x", "success": True,
                "token_usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
                "evaluation_result": {
                    "score": quality[i], "metric": "m", "inference_cost": COST[model][i]
                },
            }
            for i in range(COUNT)
        ]  # fmt: skip
        lines.append({**lines[0], "global_index": "AIME_x", "evaluation_result": None})
        files.append(write(tmp_path / f"{model}.jsonl", lines))
    summary = measure(tmp_path, tuple(files))
    assert summary["outcomes"]["formats"] == ["RouterArena"]
    assert summary["smalls"][0]["all"]["quality_small"] == pytest.approx(SMALL.mean())
    assert summary["large"]["mean_cost"] == pytest.approx(COST["big"].mean())
    assert summary["split"]["num_test"] == COUNT


def test_responses_of_route_llm_are_recognised(tmp_path):
    def wide(count):
        return [
            {"prompt": f"question {i % 5}", "tiny": bool(SMALL[i]), "big": bool(LARGE[i])}
            for i in range(count)
        ]

    files = tuple(write(tmp_path / f"mmlu_{name}.csv", wide(n)) for name, n in (("a", 8), ("b", 6)))
    summary = measure(tmp_path, files)
    assert summary["outcomes"]["formats"] == ["RouteLLM"]
    assert set(summary["smalls"][0]["tasks"]) == {"mmlu_a", "mmlu_b"}
    assert summary["split"]["num_test"] == 14
    assert summary["num_questions"] == 5
    both = np.concatenate([SMALL[:8], SMALL[:6]])
    assert summary["smalls"][0]["all"]["quality_small"] == pytest.approx(both.mean())


def test_a_model_that_is_better_and_cheaper_is_named(tmp_path):
    table = rows(cost=30.0)
    summary = measure(tmp_path, table)
    [found] = summary["do_not_cascade"]
    assert (found["better"], found["worse"]) == ("big", "tiny")
    assert found["quality_difference"] == pytest.approx((LARGE - SMALL).mean())
    assert found["low"] < found["quality_difference"] < found["high"]
    assert any("Do not cascade tiny and big" in warning for warning in summary["warnings"])
    honest = measure(tmp_path, rows())
    assert honest["do_not_cascade"] == []
    [row] = honest["benchmarks"]
    # The cheapest setting costs 1,500 dollars for 1,000 queries: no score is defined there.
    assert row["arena_small"] is None
    assert 0.0 < row["aiq"] < 1.0
    cheap = [{**row, "cost": row["cost"] / 1000} for row in rows()]
    [row] = measure(tmp_path, cheap)["benchmarks"]
    cost = np.array(COST["tiny"]).mean()
    assert row["arena_small"] == pytest.approx(arena_score(cost, SMALL.mean()))
    assert row["arena_best"] >= row["arena_small"]
