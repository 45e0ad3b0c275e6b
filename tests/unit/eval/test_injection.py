"""A hundred hostile strings, as names and answers: nothing becomes active anywhere."""

import base64
import csv
import hashlib
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from caskd.eval.config import EvalConfig
from caskd.eval.evaluate import evaluate
from caskd.eval.report import Picture, Section
from caskd.eval.report.page import Cell, Row, Slider, Table, html_bytes
from caskd.eval.report.tables import csv_bytes
from caskd.store.io import strip_control

MARKUP = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</td></tr></table><iframe src=javascript:alert(1)>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)',
    '<a href="javascript:alert(1)">x</a>',
    "<meta http-equiv=refresh content='0;url=//evil'>",
    "<base href=//evil>",
    "<link rel=stylesheet href=//evil>",
    "<form action=//evil><input name=x>",
    "<!--<script>alert(1)</script>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)",
    "{{ 7 * 7 }}{% for x in () %}",
]
FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r=1+1", "=cmd|'/C calc'!A0",
            '=HYPERLINK("http://evil")', "=1+1\n=2+2", '","=1+1']  # fmt: skip
TERMINAL = ["\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "\x08\x08over", "[red]bold[/]",
            "[link=http://evil]x[/link]", "\u202egnp.exe", "\u2066x\u2069", "\0nul"]  # fmt: skip
PLOT = ["$\\frac{1}{0}$", "$x_", "_hidden", "^", "\\", "%s%n", "--><script>alert(1)</script>",
        "]]>", "<?xml version='1.0'?>", "<!DOCTYPE x [<!ENTITY e SYSTEM '//e'>]>"]  # fmt: skip
PAYLOADS = [
    *MARKUP, *FORMULAS, *TERMINAL, *PLOT,
    *(f"answer {payload}" for payload in (*MARKUP, *FORMULAS)),
    *(payload.upper() for payload in MARKUP),
]  # fmt: skip
ALLOWED = {
    "lang", "charset", "http-equiv", "content", "name", "class", "alt", "src", "media", "srcset",
    "data-v", "title", "tabindex", "role", "scope", "for", "id", "type", "min", "max", "step",
    "value", "selected", "hidden", "aria-label", "aria-live", "data-series", "data-unit",
}  # fmt: skip
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, which nothing fetches
CONTROL = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n"} | set(
    "\u202e\u2066\u2069"
)


class Structure(HTMLParser):
    """Tags with the names of their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts = [], []
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, [name for name, _ in attributes]))

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", []))

    def handle_data(self, text):
        self.texts.append(text)


def page(text):
    picture = Picture(text, b"<svg/>", b"<svg/>")
    table = Table([Cell(text, "text")], [Row([Cell(text, "long"), Cell(text, "", text)])], text)
    section = Section(
        text, text, [text], [text], [text], Slider(f"[{text}]", text, [text, text]), [picture],
        [table], [text], {text: text}, [text],
    )  # fmt: skip
    return html_bytes(text, [section], text)


def test_there_are_a_hundred():
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 100


@pytest.mark.parametrize("payload", PAYLOADS)
def test_in_a_page_it_is_text(payload):
    hostile, harmless = Structure(page(payload)), Structure(page("HARMLESS"))
    assert hostile.tags == harmless.tags
    assert "".join(hostile.texts) == "".join(harmless.texts).replace("HARMLESS", payload)


def test_the_browser_runs_the_one_script_and_nothing_else():
    content = page("x").decode()
    [script] = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    [style] = re.findall(r"<style>(.*?)</style>", content, re.DOTALL)
    [policy] = re.findall(r'Policy" content="(.*?)"', content)
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    rest = content.replace(NAMESPACE, "")
    assert not re.search(r"https?://|\bstyle=|\bon[a-z]+=", rest)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_in_a_table_it_is_one_cell_and_no_formula(payload):
    content = csv_bytes([{"a": payload, payload: "b"}]).decode()
    head, row = csv.reader(io.StringIO(content, newline=""))
    assert len(head) == len(row) == 2
    for cell in (head[1], row[0]):
        assert cell.removeprefix("'") == strip_control(payload).removeprefix("'")
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\0"))


@pytest.mark.slow
def test_in_a_whole_report(tmp_path, predictions_file, capsys):
    count = len(PAYLOADS)
    right = np.arange(count) % 3 == 0
    hostile = {"text": PAYLOADS, "reference": PAYLOADS[::-1], "task": PAYLOADS,
               "example_id": [f"{payload}{i}" for i, payload in enumerate(PAYLOADS)]}  # fmt: skip
    names = MARKUP[1] + TERMINAL[0], PLOT[0] + TERMINAL[7], FORMULAS[0] + PLOT[6]
    files = [
        predictions_file(f"file{i}", right if i < 2 else np.ones(count), model=name, **hostile)
        for i, name in enumerate(names)
    ]
    out = tmp_path / "report"
    small = (f"{MARKUP[7]}{TERMINAL[1]}={files[0]}", files[1])
    evaluate(EvalConfig(small=small, large=files[2], out=str(out)))
    structure = Structure((out / "index.html").read_bytes())
    tags = [tag for tag, _ in structure.tags]
    assert tags.count("script") == tags.count("/script") == 1
    assert not {"iframe", "a", "form", "base", "link", "svg"} & set(tags)
    assert tags.count("input") == 1
    attributes = {name for _, names in structure.tags for name in names}
    assert attributes <= ALLOWED
    for file in out.glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ET.parse(file).iter()}
        assert tags <= {"svg", "metadata", "RDF", "Work", "type", "format", "defs", "style", "g",
                        "path", "use", "clipPath", "rect"}  # fmt: skip
    for file in out.glob("*.csv"):
        for row in csv.reader(file.read_text(encoding="utf-8").splitlines()):
            for cell in row:
                number = cell.lstrip("-").replace(".", "").replace("e", "").isalnum()
                assert number or not cell.startswith(("=", "+", "-", "@")), (file.name, cell)
    assert not CONTROL & set(capsys.readouterr().out)
