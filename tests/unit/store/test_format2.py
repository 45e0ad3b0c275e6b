"""Stores of format 2: each consumer works with what such a store knows, or says what it lacks."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import sampled_stores, stores
from helpers.format2_stores import KINDS, make_store

from caskd.cli.main import main
from caskd.store import TeacherStore, verify_store
from caskd.store.inspect import (
    card,
    diff_stores,
    example_json,
    example_view,
    info_text,
    measure_quality,
    store_info,
)
from caskd.store.verify.rows import row_problems


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TeacherStore]:
    folder = tmp_path_factory.mktemp("format2")
    made = {kind: make_store(folder / kind, kind) for kind in KINDS}
    made["ordinary"] = stores.make_store(folder / "ordinary", encoding="exact")
    made["sampled"] = sampled_stores.make_store(folder / "sampled", encoding="exact")
    return made


def test_such_a_store_is_version_2_and_verifies(found: dict[str, Any], kind: str) -> None:
    assert found[kind].spec.format_version == 2
    assert not verify_store(found[kind].root, full=True).problems
    assert found["ordinary"].spec.format_version == 1


@pytest.mark.parametrize("encoding", ["compact", "exact", "fitted2"])
def test_every_encoding_takes_them(tmp_path: Path, kind: str, encoding: str) -> None:
    store = make_store(tmp_path / "s", kind, encoding=encoding)
    assert not verify_store(store.root, full=True).problems


def test_info_and_card_say_what_differs(found: dict[str, Any], kind: str) -> None:
    info = store_info(found[kind].root)
    assert (
        info["capture_fields"].items()
        >= {
            name: value
            for name, value in KINDS[kind].items()
            if name not in ("imported_from", "engine_version")
        }.items()
    )
    shown = info_text(info) + card(found[kind].spec, found[kind].seal).replace("\\", "")
    for name, value in KINDS[kind].items():
        assert shown.count(f"{name} {value}") == 2, name
    assert "capture " not in info_text(store_info(found["ordinary"].root))


def test_quality_of_log_probabilities_is_that_of_logits(found: dict[str, Any]) -> None:
    served, ordinary = measure_quality(found["served"]), measure_quality(found["ordinary"])
    assert served.accuracy == ordinary.accuracy
    assert served.perplexity == pytest.approx(ordinary.perplexity, rel=1e-6)
    assert served.mean_tail_mass == pytest.approx(ordinary.mean_tail_mass, abs=1e-6)
    last = served.histogram().splitlines()[-1]
    assert last.strip().startswith("4 or more")
    beyond = (found["ordinary"].read(range(20)).column("label_rank") >= 4).mean()
    assert f"{beyond:.2%}" in last


def test_quality_leaves_out_what_is_not_known(found: dict[str, Any]) -> None:
    imported, draws = measure_quality(found["imported"]), measure_quality(found["draws"])
    assert (imported.perplexity, imported.mean_tail_mass) == (None, None)
    assert imported.accuracy == measure_quality(found["ordinary"]).accuracy
    assert (draws.accuracy, draws.perplexity) == (None, None)
    table = card(found["draws"].spec, found["draws"].seal, draws)
    assert "capture.argmax" in table.replace("\\", "")
    assert "--objective dist" in table


def test_show_has_none_for_what_is_not_known(found: dict[str, Any]) -> None:
    rows = {kind: example_json(found[kind], 0)["rows"] for kind in (*KINDS, "ordinary")}
    for known, served, imported, drawn in zip(
        rows["ordinary"], rows["served"], rows["imported"], rows["draws"], strict=True
    ):
        assert served["label_probability"] == pytest.approx(known["label_probability"], rel=1e-4)
        assert imported["tail_mass"] is None
        inside = known["label_rank"] < 4
        assert (imported["label_probability"] is not None) == inside
        assert drawn["label_rank"] is None
    assert {row["label_rank"] >= 4 for row in rows["ordinary"]} == {True, False}
    for kind in KINDS:
        example_view(found[kind], 0)


def test_diff_compares_probabilities_and_skips_what_is_not_known(found: dict[str, Any]) -> None:
    served = diff_stores(found["ordinary"].root, found["served"].root)
    assert served.largest.get("topk_logits", 0) < 1e-5
    assert "logsumexp" not in served.rows
    assert "argmax" not in served.rows
    imported = diff_stores(found["ordinary"].root, found["imported"].root)
    assert "tail_mass" not in imported.rows
    draws = diff_stores(found["sampled"].root, found["draws"].root)
    assert "argmax" not in draws.rows
    assert "label_rank" not in draws.rows


@pytest.mark.parametrize(
    ("kind", "field", "value", "problem"),
    [
        ("served", "logsumexp", 0.01, "logsumexp is not 0"),
        ("served", "label_rank", 5, "label_rank is larger than top_k"),
        ("served", "tail_mass", 0.9, "do not add up"),
        ("served", "label_logit", -np.inf, "not finite"),
        ("imported", "label_logit", np.nan, "not finite"),
        ("imported", "topk_logits", 40.0, "do not add up"),
        ("draws", "label_logit", np.nan, "not finite"),
    ],
)
def test_verify_reads_rows_by_their_meaning(
    found: dict[str, Any], kind: str, field: str, value: float, problem: str
) -> None:
    store = found[kind]
    batch = store.read(range(len(store)))
    assert not row_problems(batch, store.spec)
    column = np.array(batch.column(field))
    column[3 if column.ndim == 1 else (3, 0)] = value
    found_problems = row_problems(replace(batch, **{field: column}), store.spec)
    assert any(problem in text for text in found_problems), found_problems


def test_a_missing_label_is_a_problem_where_it_is_kept(found: dict[str, Any]) -> None:
    store = found["imported"]
    batch = store.read(range(len(store)))
    kept = (batch.column("topk_ids") == batch.labels[:, None]).any(axis=1)
    logit = np.where(kept, -np.inf, batch.column("label_logit")).astype(np.float32)
    assert kept.any()
    assert row_problems(replace(batch, label_logit=logit), store.spec)


def test_next_token_refuses_by_the_fields_name(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["eval", "--student", "none", "--out", str(tmp_path / "out"), "--next-token"]
    assert main([*words, str(found["imported"].root)]) == 2
    assert re.search(r"capture\.label is within_topk", capsys.readouterr().err)


def test_a_store_json_cannot_claim_version_1(found: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(found["served"].root, tmp_path / "s")
    file = tmp_path / "s" / "store.json"
    value = json.loads(file.read_text())
    del value["optional_arrays"]
    file.write_text(json.dumps({**value, "format_version": 1}))
    with pytest.raises(Exception, match="version 2"):
        TeacherStore.open(tmp_path / "s")
