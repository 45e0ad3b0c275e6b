"""The page of a report: its structure, its colors, and what it does without a script."""

import json
import re
from html.parser import HTMLParser
from importlib import resources
from itertools import product

import pytest
from helpers.outcome_tables import config, rows

from caskd.eval.evaluate import evaluate
from caskd.eval.report import PAPER
from caskd.eval.report.plot_style import DARK
from caskd.eval.report.terms import TERMS, explained, explained_head

STYLE = resources.files("caskd.eval.report").joinpath("page.css").read_text()
VOID = {"meta", "input", "img", "source"}


class Tree(HTMLParser):
    """Every element with its attributes, its ancestors and its own text, in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "above": [one["tag"] for one in self.open], "text": "",
                   **dict(attributes)}  # fmt: skip
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, text):
        for element in self.open:
            element["text"] += text

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            one for one in self.elements
            if one["tag"] == tag and all(one.get(key) == value for key, value in wanted.items())
        ]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report on one small model: its summary, and the tree of its page."""
    folder = tmp_path_factory.mktemp("page")
    summary = evaluate(config(folder, rows(model="tiny")))
    return summary, Tree((folder / "out" / "index.html").read_text())


@pytest.mark.slow
def test_the_decision_comes_first(report):
    summary, tree = report
    [lead] = tree.all("p", class_="lead")
    assert lead["text"] == summary["decision"]["sentence"]
    after = tree.elements[tree.elements.index(tree.all("h1")[0]) + 1 :]
    assert [one["tag"] for one in after[:2]] == ["section", "p"]
    assert after[1] is lead


@pytest.mark.slow
def test_the_slider_has_a_name_and_the_numbers_of_the_curve(report):
    summary, tree = report
    [box] = tree.all("div", class_="slider")
    assert "hidden" in box  # until the script shows it
    [range_] = tree.all("input", type="range")
    assert range_["aria-label"]
    assert [one["for"] for one in tree.all("output")] == [range_["id"]]
    assert not tree.all("select")  # a single small model
    [series] = json.loads(box["data-series"])
    lengths = {len(value) for value in series.values() if isinstance(value, list)}
    assert len(lengths) == 1
    assert series["threshold"][0] is None
    assert (series["rate"][0], series["rate"][-1]) == (0.0, 1.0)
    figures = summary["smalls"][0]["all"]
    assert series["quality"][0] == pytest.approx(figures["quality_small"], rel=1e-5)
    assert series["quality"][-1] == pytest.approx(figures["quality_large"], rel=1e-5)
    rate = summary["decision"]["point"]["deferral_rate"]
    assert series["rate"][series["start"]] == pytest.approx(rate, abs=1e-5)
    for low, quality, high in zip(series["low"], series["quality"], series["high"], strict=True):
        assert low <= quality <= high
    [noscript] = tree.all("noscript")
    assert "curve.csv" in noscript["text"]


@pytest.mark.slow
def test_wide_content_scrolls_within_itself(report):
    _, tree = report
    regions = [one for one in tree.elements if one.get("class") == "wide"]
    assert len(regions) == len(tree.all("table")) + len(tree.all("img"))
    for one in regions:
        assert (one["tabindex"], one["role"]) == ("0", "region")
        assert one["aria-label"]
    assert {one["scope"] for one in tree.all("th")} == {"col"}
    assert all(one["alt"] for one in tree.all("img"))


@pytest.mark.slow
def test_terms_are_explained_where_they_stand_and_in_the_legend(report):
    _, tree = report
    legend = dict(zip((one["text"] for one in tree.all("dt")),
                      (one["text"] for one in tree.all("dd")), strict=True))  # fmt: skip
    assert legend == TERMS
    marked = tree.all("abbr")
    assert {"AUDC", "APGR"} <= {one["text"] for one in marked}
    for one in marked:
        assert one["title"] in TERMS.values()
        assert one.get("tabindex") == "0" or one["above"][-1] == "button"  # both take the focus


def test_a_term_is_explained_once_and_text_stays_text():
    shown = str(explained("AUDC & <b>AUDC</b>, Deferral rate"))
    assert shown.count("<abbr") == 2
    assert "</abbr> &amp; &lt;b&gt;AUDC&lt;/b&gt;, <abbr" in shown
    assert "<abbr" not in str(explained("AUDCs and thresholds of ECEX"))
    assert str(explained_head("CPT 50 %")).startswith('<abbr title="Call-performance')
    assert str(explained_head("<arm>")) == "&lt;arm&gt;"


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    """Contrast of two colors, from 1 to 21 (WCAG 2.2)."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


SCHEMES = [
    dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", part)) for part in STYLE.split("@media")[:2]
]
BACKGROUNDS = {"page", "card", "hover", "alert"}
TEXTS = {"ink", "soft"}
GRAPHICS = {"accent", "mark", "edge"}
DECORATION = {"line"}  # rules between rows, which tell nothing that the text does not


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
def test_every_pair_of_colors_can_be_read(scheme):
    assert set(scheme) == BACKGROUNDS | TEXTS | GRAPHICS | DECORATION
    for kinds, least in ((TEXTS, 4.5), (GRAPHICS, 3.0)):
        for color, below in product(kinds, BACKGROUNDS):
            assert contrast(scheme[color], scheme[below]) >= least, (color, below)


def test_every_color_of_the_style_is_one_of_these():
    rest = STYLE.partition("box-sizing")[2]
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgba?\(|hsl|opacity", rest)
    uses = re.findall(r"(?:^|[\s;{])(color|fill|background): ([^;}]+)", rest)
    texts = {value for name, value in uses if name == "color"}
    assert texts == {f"var(--{name})" for name in TEXTS}
    grounds = {value for name, value in uses if name == "background"}
    assert grounds <= {f"var(--{name})" for name in BACKGROUNDS}


@pytest.mark.parametrize(("style", "scheme"), [(PAPER, SCHEMES[0]), (DARK, SCHEMES[1])])
def test_every_line_of_a_figure_can_be_seen(style, scheme):
    for color in (style.soft, *style.colors):
        assert contrast(color.lower(), scheme["page"]) >= 3.0, color
    assert contrast(style.ink, scheme["page"]) >= 4.5


def test_dark_and_light_figures_have_one_color_for_each_series():
    for style in (PAPER, DARK):
        assert len({*style.colors, style.ink, style.soft, style.grid}) == len(style.colors) + 3
    assert len(PAPER.colors) == len(DARK.colors)


def test_paper_shows_no_slider_and_unfolds_tables():
    paper = STYLE.partition("@media print")[2]
    assert re.search(r"\.slider[^{]*\{ display: none", paper)
    assert re.search(r"\.wide \{ overflow: visible", paper)
