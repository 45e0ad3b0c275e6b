"""Values that make no sense are refused by file, row and column; -inf is not one of them."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from caskd.eval import deferral_curve
from caskd.eval.answers import Ragged, read_predictions
from caskd.eval.config import EvalConfig, PredictConfig
from caskd.eval.curves import Link, apply_thresholds, chain_frontier
from caskd.eval.evaluate import evaluate
from caskd.eval.inference import predict
from caskd.eval.rules import Pair, deferral_scores, fixed_rule
from caskd.eval.rules.fitted import ROUTERS, fit_router
from caskd.eval.serving.cascade_file import read_cascade
from caskd.eval.stats import area_replicates
from caskd.eval.tasks import TASKS, Task, choose_tasks
from caskd.store.errors import UsageError

pytestmark = pytest.mark.usefixtures("without_figures")

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("quality", 7.0, "from 0 to 1"), ("quality", -0.1, "from 0 to 1"),
        ("quality", NAN, "from 0 to 1"), ("quality", INF, "from 0 to 1"),
        ("token_logprobs", [-1.0, 0.5], "0 or less"), ("token_logprobs", [INF], "0 or less"),
        ("token_logprobs", [NAN, -1.0], "0 or less"), ("option_logprobs", [0.1], "0 or less"),
        ("token_margins", [-1.0], "a margin"), ("token_entropies", [NAN], "a finite entropy"),
        ("hidden", [INF], "a finite number"), ("prompt_tokens", -1, "0 or more"),
        ("output_tokens", -5, "0 or more"), ("seconds", NAN, "finite seconds"),
        ("seconds", -0.5, "finite seconds"), ("seconds", INF, "finite seconds"),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds(predictions_file, column, value, expected):
    good = {"token_logprobs": [-1.0], "seconds": 0.5, "prompt_tokens": 3, "output_tokens": 1}
    good |= {"option_logprobs": [-1.0], "token_margins": [1.0], "token_entropies": [0.1]}
    good |= {"hidden": [0.0], "quality": 1.0}
    file = predictions_file("bad", [1, 1, 1], **{column: [good[column]] * 2 + [value]})
    message = rf"bad.parquet: row 2 \(example 'e2'\), column {column}: got .*{expected}"
    with pytest.raises(UsageError, match=message) as caught:
        read_predictions(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parameters", [0, -5, True, False, 1.5, "10", None])
def test_a_number_of_parameters_that_is_none(predictions_file, parameters):
    file = predictions_file("bad", [1], parameters=parameters)
    with pytest.raises(UsageError, match=r"bad.parquet.*num_parameters is .*, expected a whole"):
        read_predictions(file)


def test_a_metric_of_somebody_else_has_no_bounds(predictions_file):
    file = predictions_file("own", [7.0, -2.0], metadata={"quality": "reward"})
    assert read_predictions(file).numbers("quality").tolist() == [7.0, -2.0]
    file = predictions_file("own", [7.0], metadata={"quality": "bleu-zh (a); reward (b)"})
    assert read_predictions(file).numbers("quality").tolist() == [7.0]


def test_rounding_of_a_server_is_no_nonsense(predictions_file):
    read_predictions(predictions_file("a", [1], token_logprobs=[[3e-5, -0.0]]))


def test_a_file_without_digests_is_read(predictions_file, tmp_path):
    table = pq.read_table(predictions_file("a", [1, 0])).drop_columns(["question_digest"])
    pq.write_table(table, tmp_path / "b.parquet")
    read = read_predictions(str(tmp_path / "b.parquet"))
    assert read.strings("question_digest") == ["", ""]
    pair = Pair(read, read)
    assert (pair.units, pair.num_questions) == (None, 2)


def scores(rows, rule):
    return deferral_scores(Ragged.of(rows), fixed_rule(rule))


@pytest.mark.parametrize("rule", ["average", "sum", "min", "first-token", "quantile-0.4"])
def test_a_probability_of_zero_defers_first(rule):
    rows = [[-0.1, -0.2], [-INF, -0.1], [-5.0, -4.0], [-INF, -INF]]
    found = scores(rows, rule)
    assert np.isfinite(found).all()
    assert found[1] == found[3] > found[2] > found[0]


def test_the_other_rules_and_infinity():
    assert scores([[-INF, -1.0], [-INF, -INF]], "max").tolist() == [1.0, np.finfo(float).max]
    found = scores([[-INF, -1.0], [-INF, -INF]], "option")
    assert found[1] > found[0] == pytest.approx(0.0)
    assert scores([[INF, 1.0], [2.0]], "margin")[0] < -2.0
    np.testing.assert_array_equal(
        Ragged.of([[-INF, 0.0], [-1.0, -INF]]).quantiles([0.0, 0.3, 1.0]),
        [[-INF, -INF, 0.0], [-INF, -INF, -1.0]],
    )


def test_infinite_scores_are_one_block_of_the_curve():
    score, small, large = [INF, 0.0, INF, 1.0], [0.0, 1.0, 0.0, 1.0], [1.0] * 4
    curve = deferral_curve(score, small, large)
    assert curve.deferral_rate.tolist() == [0.0, 0.5, 0.75, 1.0]
    assert curve.threshold[0] == INF
    assert np.isfinite(curve.threshold[1:]).all()
    raised = deferral_curve([9.0, 0.0, 9.0, 1.0], small, large)
    assert curve.quality.tolist() == raised.quality.tolist()
    assert curve.audc == raised.audc
    series = [(np.array(score), np.array(small)), (np.array([9.0, 0, 9, 1]), np.array(small))]
    infinite, finite = area_replicates(series, np.array(large))
    np.testing.assert_array_equal(infinite, finite)


def test_infinite_scores_in_a_chain():
    ones, costs = np.ones(4), np.ones(4)
    links = [Link(np.array([INF, 0.0, 1.0, INF]), ones, costs)] * 2
    frontier = chain_frontier(links, ones, costs)
    assert frontier.answered[0].tolist() == [1.0, 0.0, 0.0]  # nothing deferred, the infinite too
    _, _, answerer = apply_thresholds(links, ones, costs, [1e300, INF])
    assert answerer.tolist() == [1, 0, 0, 1]


def test_a_router_reads_a_probability_of_zero(study):
    pair = Pair(read_predictions(study("s")), read_predictions(study("l", skill=2.0)))
    lists = pair.lists

    def with_zero(name):
        rows = lists(name)
        return Ragged(np.where(np.arange(rows.values.size) == 3, -INF, rows.values), rows.offsets)

    pair.lists = with_zero
    router = fit_router(ROUTERS["post-hoc-mlp"], pair, pair.small_quality, pair.large_quality)
    assert np.isfinite(router.score(pair)).all()


def test_from_the_file_to_the_cascade(predictions_file, tmp_path):
    logprobs = [[-INF] if i % 4 == 0 else [-0.01 * i] for i in range(40)]
    small = predictions_file(
        "small", [float(i % 4 != 0) for i in range(40)], token_logprobs=logprobs,
        text=["" if i < 36 else "x" for i in range(40)],
    )  # fmt: skip
    config = EvalConfig(
        small=(small,), large=predictions_file("large", [1.0] * 40), rule=("average",),
        out=str(tmp_path / "report"), operating_point="quality>=1",
    )  # fmt: skip
    summary = evaluate(config)
    cascade = read_cascade(str(tmp_path / "report" / "cascade.json"))
    assert math.isfinite(cascade.threshold)
    point = summary["operating_point"]["expected"]
    assert point["deferral_rate"]["mean"] == 0.25
    assert point["quality"]["mean"] == 1.0
    fresh = scores([[-INF], [-3.0]], "average")
    assert (fresh >= cascade.threshold).tolist() == [True, False]
    assert any("36 of 40 answers of" in line for line in summary["warnings"])
    assert summary["smalls"][0]["num_empty_answers"] == 36
    assert summary["large"]["num_empty_answers"] == 0


@pytest.mark.parametrize("value", [NAN, INF, -INF, True, "inf"])
def test_a_threshold_that_is_none(tmp_path, study, value):
    out = tmp_path / "report"
    config = EvalConfig(
        small=(study("s"),), large=study("l", skill=2.0), rule=("average",), out=str(out),
        operating_point="deferral_rate<=0.5",
    )  # fmt: skip
    evaluate(config)
    fields = json.loads((out / "cascade.json").read_text())
    (out / "cascade.json").write_text(json.dumps({**fields, "threshold": value}))
    with pytest.raises(
        UsageError,
        match=r"threshold.*expected a finite number|cascade\.json: not readable.*of caskd eval",
    ):
        read_cascade(str(out / "cascade.json"))


def test_an_empty_stop_text_is_refused(monkeypatch, tmp_path):
    config = PredictConfig(
        model="no-such", data=("no-such.jsonl",), out=str(tmp_path / "p.parquet"), stop=("",)
    )
    with pytest.raises(UsageError, match=r"--stop ''.*would empty every answer"):
        predict(config)
    monkeypatch.setitem(TASKS, "mine", Task(stop=("",)))
    with pytest.raises(UsageError, match=r"task 'mine'.*empty stop text"):
        choose_tasks(["mine"])
