"""The help of `caskd predict` and `caskd eval` names all that a user can choose by name."""

import ast
import inspect

from caskd.eval import config
from caskd.eval.metrics.metrics import METRICS
from caskd.eval.rules import ROUTERS
from caskd.eval.rules.fixed import DEFAULT_RULES, QUANTILE, RULES


def words_of_help(name: str, field: str) -> set[str]:
    """The words of a flag's help: the text that follows the field in its class."""
    nodes = {node.name: node for node in ast.parse(inspect.getsource(config)).body
             if isinstance(node, ast.ClassDef)}  # fmt: skip
    body = nodes[name].body
    (place,) = [
        number
        for number, node in enumerate(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == field
    ]
    text = body[place + 1]
    assert isinstance(text, ast.Expr)
    assert isinstance(text.value, ast.Constant)
    return {word.strip(",.;:") for word in str(text.value.value).split()}


def test_the_help_of_rule_names_every_rule() -> None:
    named = words_of_help("EvalConfig", "rule")
    assert {*RULES, *ROUTERS, f"{QUANTILE}Q"} <= named


def test_the_help_of_task_metric_names_every_metric() -> None:
    assert set(METRICS) <= words_of_help("PredictConfig", "task_metric")


def test_every_rule_is_computed_by_default() -> None:
    assert {*RULES, "quantile-0.4"} == set(DEFAULT_RULES)
    assert DEFAULT_RULES[0] == "average"


def test_only_p_ik_alone_has_a_confidence() -> None:
    assert [name for name, kind in ROUTERS.items() if kind.has_confidence] == ["p-ik"]
