"""Pages in a real browser, wide and narrow, light and dark: errors, overflow, the slider."""

import re

import pytest
from helpers import stores
from helpers.browser import browser, find_browser
from helpers.outcome_tables import COST, COUNT, LARGE, SCORE, SMALL, config

from caskd.cli.store_pages import store_page
from caskd.eval.evaluate import evaluate
from caskd.store.inspect import measure_quality

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="needs CASKD_BROWSER=chromium, or its path"),
]
RIGHT, END, HOME = ("ArrowRight", 39), ("End", 35), ("Home", 36)
OUTPUT = "document.querySelector('output').textContent"
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Address of a report on two small models, one with a hostile name."""
    folder = tmp_path_factory.mktemp("browser")
    table = [
        {"example_id": f"q{i}", "model": model, "quality": quality[i], "score": SCORE[i],
         "cost": COST[cost][i], "task": "even" if i % 2 == 0 else "odd"}
        for model, quality, cost in (
            ("tiny", SMALL, "tiny"), (HOSTILE, SMALL[::-1], "tiny"), ("big", LARGE, "big"))
        for i in range(COUNT)
    ]  # fmt: skip
    flags = config(folder, table, "t.jsonl", small=("tiny", HOSTILE))
    evaluate(flags)
    return (folder / "out" / "index.html").as_uri()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A tab of a headless browser."""
    program = find_browser()
    assert program is not None
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_fails_and_nothing_overflows(page, report, width, scheme, tmp_path):
    page.open(report, width=width, scheme=scheme)
    assert page.problems == []
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    # What is wider than the window scrolls within its own region.
    assert page.run(
        "[...document.querySelectorAll('main > section > *')].every(one => "
        "one.getBoundingClientRect().right <= document.documentElement.clientWidth + 1)"
    )
    assert page.run("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    assert page.run("Math.min(...[...document.images].map(one => one.width))") >= 640
    assert page.run("document.images[0].currentSrc === document.images[0].src") == (
        scheme == "light"
    )
    page.screenshot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_the_page_of_a_store(page, tmp_path, width, scheme):
    store = stores.make_store(tmp_path / "s")
    file = tmp_path / "card.html"
    file.write_bytes(store_page(str(store.root), measure_quality(store), HOSTILE))
    page.open(file.as_uri(), width=width, scheme=scheme)
    assert page.problems == []
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0


@pytest.mark.parametrize("width", [1400, 390])
def test_the_slider_follows_the_keys(page, report, width):
    page.open(report, width=width)
    page.run("document.querySelector('input').focus()")
    page.key(*HOME)
    first = page.run(OUTPUT)
    assert "defers nothing" in first
    assert "deferral rate 0.0 %" in first
    page.key(*RIGHT)
    second = page.run(OUTPUT)
    assert second != first
    place = "document.querySelector('.slider circle').getAttribute('cx')"
    assert float(page.run(place)) > 50.0
    page.key(*END)
    last = page.run(OUTPUT)
    assert "deferral rate 100.0 %" in last
    assert f"quality {LARGE.mean():.3f} [" in last
    both = COST["tiny"].mean() + COST["big"].mean()
    assert f"+{100 * (both / COST['big'].mean() - 1):.0f} % against" in last
    spoken = page.run("document.querySelector('input').getAttribute('aria-valuetext')")
    assert spoken == last.replace("\n", ", ")
    assert float(page.run(place)) == 350.0
    assert page.problems == []


def test_the_slider_shows_the_other_small_model(page, report):
    page.open(report, width=1400)
    names = page.run("[...document.querySelectorAll('option')].map(one => one.textContent)")
    assert names == ["tiny", HOSTILE]
    found = []
    for index in (0, 1):
        page.run(
            f"document.querySelector('select').value = {index};"
            "document.querySelector('select').onchange();"
            "document.querySelector('input').value = 3;"
            "document.querySelector('input').oninput()"
        )
        found.append(page.run(OUTPUT))
    assert found[0] != found[1]
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0
    assert page.problems == []


def test_a_term_shows_its_meaning_when_it_has_the_focus(page, report):
    page.open(report, width=390)
    page.run("document.querySelector('abbr[tabindex]').focus()")
    shown = "getComputedStyle(document.querySelector('abbr[tabindex]'), '::after')"
    assert page.run(f"{shown}.position") == "fixed"
    assert len(page.run(f"{shown}.content")) > 20
    page.run("document.activeElement.blur()")
    assert page.run(f"{shown}.content") == "none"


def test_a_click_sorts_and_paper_unfolds(page, report):
    page.open(report, width=1400)
    page.run("document.querySelector('th button').click()")
    assert page.run("document.querySelector('th').getAttribute('aria-sort')") == "descending"
    assert re.match(rb"%PDF-1\.", page.pdf())
    assert page.run("document.querySelectorAll('details:not([open])').length") == 0
    assert page.problems == []
