"""The report on token cascades: verdicts from made-up decisions, and thresholds of the decoder."""

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[3] / "examples" / "token_cascades"
ROWS = 1500


def decisions(arm, seed):
    """Every student is right on one token of four; a call of `fact-loss` sees where it is wrong."""
    shared = np.random.default_rng(1)
    right = (shared.uniform(size=ROWS) < 0.25).astype(float)
    large = (shared.uniform(size=ROWS) < 0.6).astype(float)
    own = np.random.default_rng([seed, len(arm)])
    noise = own.normal(size=ROWS)
    nothing = np.full(ROWS, np.nan)
    return {
        "right": right, "large_right": large, "questions": np.arange(ROWS) // 30,
        "best_logprob": -own.uniform(size=ROWS), "margin": own.uniform(size=ROWS),
        "entropy": own.uniform(size=ROWS), "choice_ratio": own.uniform(size=ROWS),
        "call_log_odds": nothing if arm == "xent" else noise - 2 * right * (arm == "fact-loss"),
        "routed": own.uniform(size=ROWS) if arm == "xent" else nothing,
    }  # fmt: skip


@pytest.mark.slow
def test_verdicts_follow_the_decisions(tmp_path):
    for arm in ("xent", "loss", "fact-loss"):
        for seed in range(5):
            folder = tmp_path / "work" / "text" / "clean" / f"{arm}-{seed}"
            folder.mkdir(parents=True)
            np.savez(folder / "test.npz", **decisions(arm, seed))
    (tmp_path / "page.md").write_text("# Page\n\n## Measured\n\nof an earlier run\n")
    words = ["--tables", "tables", "--page", "page.md", "--figure", "figure.svg"]
    subprocess.run(
        [sys.executable, str(FOLDER / "report.py"), "work", *words], cwd=tmp_path, check=True
    )
    with open(tmp_path / "tables" / "claims.csv") as file:
        claims = list(csv.DictReader(file))
    assert [row["result"] for row in claims] == [
        "reproduced", "undecided (not run)", "undecided (not run)", "reproduced",
    ]  # fmt: skip
    with open(tmp_path / "tables" / "contrasts.csv") as file:
        found = {(r["first"], r["second"], r["measure"]): r for r in csv.DictReader(file)}
    row = found["fact-loss/call", "loss/call", "audc"]
    assert row["verdict"] == "above"
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])
    assert found["xent/router", "xent/entropy", "audc"]["verdict"] == "no difference shown"
    page = (tmp_path / "page.md").read_text()
    assert page.count("## Measured") == 1
    assert "earlier run" not in page
    assert (tmp_path / "figure.svg").exists()


def test_thresholds_give_the_share_of_the_rule(tmp_path):
    module = runpy.run_path(str(FOLDER / "rows.py"))
    rows = decisions("xent", 0)
    np.savez(tmp_path / "rows.npz", **rows)
    q = np.exp(rows["best_logprob"])
    taken = {
        "log-probability": lambda x: q < 1 - x,
        "margin": lambda x: rows["margin"] <= x,
        "entropy": lambda x: rows["entropy"] >= x,
        "token-v3": lambda x: rows["choice_ratio"] < 1 - x,
        "router": lambda x: rows["routed"] >= x,
    }
    for rule, takes in taken.items():
        for share, flags in module["thresholds"](tmp_path / "rows.npz", rule, (0.1, 0.3)).items():
            assert takes(float(flags[-1])).mean() == pytest.approx(share, abs=2 / ROWS), rule
    assert module["_flags"]("call", -1.5)[-1] == "--call-threshold=-1.50000000"
