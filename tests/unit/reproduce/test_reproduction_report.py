"""The report of the reproduction: from a working folder to tables, figures and a page."""

import re
import shutil
from statistics import fmean

import pytest
import report
from report_claims import claim_rows
from report_contrasts import contrast_rows
from report_page import page
from report_read import read_csv, read_work


@pytest.fixture(scope="session")
def written(work_folder, tmp_path_factory):
    """A folder with the tables and the page."""
    out = tmp_path_factory.mktemp("out")
    report.write_tables(read_work(work_folder), out / "results")
    report.write_page(out / "results", out / "docs")
    return out


@pytest.fixture
def table(written):
    return lambda name: read_csv(written / "results" / f"{name}.csv")


def pick(rows, **where):
    """The lines with these cells."""
    return [row for row in rows if where.items() <= row.items()]


@pytest.mark.slow
def test_differences_are_the_first_arm_minus_the_second(table):
    clean = pick(table("runs"), condition="clean")
    areas = {arm: [row["audc"] for row in pick(clean, arm=arm)] for arm in ("xent", "cat-xent")}
    assert [len(own) for own in areas.values()] == [5, 5]
    where = {"condition": "clean", "task": "all", "measure": "audc"}
    rows = table("contrasts")
    assert rows[0]["contrast"] == "cat-xent - random-xent"
    [row] = pick(rows, contrast="cat-xent - xent", **where)
    apart = [cat - xent for cat, xent in zip(areas["cat-xent"], areas["xent"], strict=True)]
    assert row["mean"] == pytest.approx(fmean(apart), abs=1e-6)
    assert row["low"] < row["mean"] < row["high"]
    assert row["t_low"] + row["t_high"] == pytest.approx(2 * row["mean"], abs=1e-5)
    assert (row["num_seeds"], row["verdict"]) == (5, "above")


def test_a_reversed_difference_changes_its_sign(work_folder, monkeypatch):
    [study] = [
        study
        for study in read_work(work_folder).studies
        if (study.pool, study.condition) == ("generation", "clean")
    ]
    pairs = (("cat-xent", "xent"), ("xent", "cat-xent"))
    monkeypatch.setattr("report_contrasts.OTHER_PAIRS", pairs)
    rows = list(contrast_rows(read_work(work_folder)))
    there, back = (
        pick(rows, condition=study.condition, role=role, task="all", measure="audc", contrast=name)
        for role, name in (("primary", "cat-xent - xent"), ("other", "xent - cat-xent"))
    )
    assert back[0]["mean"] == -there[0]["mean"]
    assert (back[0]["low"], back[0]["t_high"]) == (-there[0]["high"], -there[0]["t_low"])
    assert back[0]["verdict"] == "below"


def test_unfinished_arms_are_listed(table, written):
    states = {(row["pool"], row["condition"], row["arm"]): row for row in table("progress")}
    assert states["generation", "clean", "xent"]["state"] == "finished"
    dist = states["generation", "clean", "cat-dist"]
    assert (dist["finished_seeds"], dist["planned_seeds"], dist["state"]) == (2, 3, "unfinished")
    assert states["classification", "clean", "xent"]["state"] == "not begun"
    page = (written / "docs" / "reproduction.md").read_text()
    assert "| generation | clean | cat-dist | 2 of 3 |" in page
    assert "| classification | clean | xent | 0 of 5 |" in page


def test_runs_have_the_figures_of_their_training(table):
    [run] = pick(table("runs"), condition="clean", arm="xent", seed=0)
    assert (run["steps"], run["keep_fraction"], run["seconds"]) == (40, 1, 7)
    bins = pick(table("keep_fraction"), condition="clean", arm="cat-xent")
    assert len(bins) == 20
    assert (bins[0]["first_step"], bins[-1]["last_step"]) == (1, 40)
    assert {(row["keep_fraction"], row["num_seeds"]) for row in bins} == {(0.75, 5)}


def test_parts_add_up_to_the_curve(table):
    rows = pick(table("curves"), condition="clean", arm="cat-xent")
    assert len(rows) == 101
    for row in rows:
        assert row["a1"] + row["a2"] == pytest.approx(row["quality"], abs=1e-5)
    at = {row["deferral_rate"]: row for row in rows}
    found = pick(table("a1_a2"), condition="clean", part="a1")
    assert [row["deferral_rate"] for row in found] == [0.1, 0.2, 0.3, 0.5, "mean"]
    assert found[1]["cat-xent"] == pytest.approx(at[0.2]["a1"], abs=1e-5)


def test_rules_are_compared_with_average_on_the_same_seeds(table):
    [row] = pick(table("rules"), arm="cat-xent", rule="quantile-0.4")
    [average] = pick(table("rules"), arm="cat-xent", rule="average")
    assert row["mean"] == pytest.approx(row["audc"] - average["audc"], abs=2e-6)
    assert row["low"] < row["mean"] < row["high"]
    assert row["num_seeds"] == 2
    assert row["verdict"] == "undecided (2 seeds)"


def test_claims_follow_from_the_tables(table):
    rows = table("claims")
    for row in pick(rows, claim="positive-control", pool="generation"):
        name = row["part"].split(", ")[0]
        [contrast] = pick(table("contrasts"), condition="noisy20-clean-teacher", contrast=name,
                          task="all", measure="audc")  # fmt: skip
        assert (row["mean"], row["t_low"]) == (contrast["mean"], contrast["t_low"])
        assert row["marked"] == row["part_marked"] == "reproduced"
    unmeasured = pick(rows, claim="cat-dist", pool="generation")
    assert [row["marked"] for row in unmeasured] == ["undecided"]
    [next_token] = pick(rows, claim="next-token")
    assert (next_token["pool"], next_token["marked"]) == (None, "undecided")


@pytest.mark.parametrize(
    ("cat_random", "cat_xent", "fit", "expected"),
    [
        ("above", "above", "fit", "reproduced"),
        ("above", "no difference shown", "fit", "undecided"),
        ("below", "above", "fit", "contradicted"),
        ("above", "above", "unfit", "undecided"),
        ("undecided (4 seeds)", "undecided (4 seeds)", "fit", "undecided"),
    ],
)
def test_a_claim_is_marked_by_all_of_its_differences(cat_random, cat_xent, fit, expected):
    where = {"pool": "generation", "condition": "noisy20-clean-teacher"}
    figures = dict.fromkeys(("mean", "low", "high", "t_low", "t_high", "num_seeds"), 5)
    contrasts = [
        {**where, "contrast": f"cat-xent - {other}", "task": "all", "measure": "audc",
         "verdict": found, "equivalence": "no difference shown", **figures}
        for other, found in (("random-xent", cat_random), ("xent", cat_xent))
    ]  # fmt: skip
    pools = [{**where, "arm": "xent", "fit": fit}]
    planned = {"generation": [where["condition"]]}
    rows = list(claim_rows({"contrasts": contrasts, "pools": pools}, planned))
    assert {row["marked"] for row in pick(rows, claim="positive-control")} == {expected}
    others = {row["marked"] for row in rows if row["claim"] != "positive-control"}
    assert others == {"undecided"}
    assert not pick(rows, claim="cat-xent", pool="generation"), "a condition that is not planned"


def test_the_page_reads_nothing_but_the_tables(written, work_folder, tmp_path):
    results = shutil.copytree(written / "results", tmp_path / "results")
    stale = tmp_path / "docs" / "reproduction" / "old-keep.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    report.write_page(results, tmp_path / "docs")
    again, first = (folder / "docs" / "reproduction.md" for folder in (tmp_path, written))
    assert again.read_bytes() == first.read_bytes()
    assert str(work_folder) not in first.read_text()
    names = {path.name for path in stale.parent.iterdir()}
    assert names == {
        f"generation-{name}.png" for name in ("curves", "differences", "keep", "rules")
    }
    for name in names:
        assert f"(reproduction/{name})" in first.read_text()
        assert (stale.parent / name).read_bytes() == (
            written / "docs" / "reproduction" / name
        ).read_bytes()


def test_a_verdict_changes_the_words(written, tmp_path):
    results = shutil.copytree(written / "results", tmp_path / "results")
    before = (written / "docs" / "reproduction.md").read_text()
    assert "mask? generation: **yes**." in before
    claims = results / "claims.csv"
    claims.write_text(claims.read_text().replace(",fit,reproduced,", ",fit,contradicted,"))
    after = page(report.read_tables(results), [], "results")
    assert "generation: **yes**" not in after
    assert "mask? generation: **no, the opposite**." in after
    claims.write_text(claims.read_text().replace("5,above", "5,undecided (4 seeds)"))
    after = page(report.read_tables(results), [], "results")
    assert "mask? generation: **too few seeds**." in after


def test_a_plan_without_results_makes_a_page(tmp_path):
    (tmp_path / "plan.json").write_text(
        '{"scale": "cpu", "pools": {"text": {"conditions": {"clean": {"xent": [0]}}}}}'
    )
    report.write_tables(read_work(tmp_path), tmp_path / "results")
    report.write_page(tmp_path / "results", tmp_path / "docs")
    assert "Nothing is finished yet." in (tmp_path / "docs" / "reproduction.md").read_text()


def test_the_published_page_is_generated_from_the_published_tables():
    published = (report.ROOT / "docs" / "reproduction.md").read_text()
    results = report.ROOT / "benchmarks" / "results" / "reproduction"
    pictures = [
        (pool, path, alt) for alt, pool, path in re.findall(r"!\[(.*): (.*)\]\((.*)\)", published)
    ]
    found = page(report.read_tables(results), pictures, "../benchmarks/results/reproduction")
    assert found == published, "run the page of examples/reproduce_cat/report.py again"


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"has no plan\.json"):
        read_work(tmp_path)


def test_the_first_table_shows_the_primary_contrasts(written, table):
    page_text = (written / "docs" / "reproduction.md").read_text()
    top = page_text.split("Differences in AUDC")[0].splitlines()
    [control] = [line for line in top if "20 % of the labels wrong, teacher" in line]
    assert top.index(control) < top.index(next(line for line in top if "clean labels |" in line))
    cells = [cell.strip() for cell in control.strip("|").split("|")]
    for cell, other in zip(cells[3:5], ("random-xent", "xent"), strict=True):
        [row] = pick(table("contrasts"), condition="noisy20-clean-teacher", task="all",
                     contrast=f"cat-xent - {other}", measure="audc")  # fmt: skip
        assert row["verdict"] == "above"
        assert cell.startswith(f"**{row['mean']:+.4f}** [")
