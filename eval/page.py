"""index.html of a report: one file that fetches nothing and runs nothing."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cascade report</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th, td { border-bottom: 1px solid #8884; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
tr.pooled { font-weight: 600; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
.warning { border-left: 4px solid #d55e00; padding: .3rem .8rem; margin: .6rem 0; }
footer { margin-top: 2rem; font-size: .85rem; opacity: .75; }
</style>
</head>
<body>
<h1>Cascades with {{ large }} as the large model</h1>
<p>The small model answers first. An answer whose deferral score ({{ rule }} rule) reaches the
threshold is deferred to the large model. Quality is the share of exact matches.</p>
{% for warning in warnings %}<p class="warning">{{ warning }}</p>
{% endfor %}
<img src="data:image/png;base64,{{ curve_png }}" alt="Quality over deferral rate and over cost">
<div class="wide"><table>
<tr><th>small model</th><th>task</th><th>examples</th><th>small</th><th>large</th><th>AUDC</th>
<th>random</th><th>oracle</th><th>over random</th><th>APGR</th></tr>
{% for row in rows %}<tr{% if row.task == all_tasks %} class="pooled"{% endif %}>
<td>{{ row.small }}</td><td>{{ row.task }}</td><td>{{ "{:,}".format(row.num_examples) }}</td>
{% for name in qualities %}<td>{{ "%.4f" % row[name] }}</td>{% endfor %}
<td>{% if row.percent_over_random is none %}&ndash;
{% else %}{{ "%+.2f" % row.percent_over_random }} %{% endif %}</td>
<td>{% if row.apgr is none %}&ndash;{% else %}{{ "%.3f" % row.apgr }}{% endif %}</td></tr>
{% endfor %}</table></div>
<p>AUDC is the area under quality over deferral rate. The oracle knows which answers are right.
APGR is the share of the large model's lead that the cascade recovers, averaged over rates.
A task's own row has thresholds of its own.</p>
{% if differences %}<h2>Differences between small models</h2>
<ul>{% for line in differences %}<li>{{ line }}</li>{% endfor %}</ul>
<p>The interval redraws the test examples, the same for both models. Another training seed can move
the result further.</p>{% endif %}
<h2>Where the quality comes from</h2>
<img src="data:image/png;base64,{{ parts_png }}" alt="A1 and A2 over deferral rate">
<footer>caskd {{ version }}. Every number is in summary.json, every point in curve.csv.</footer>
</body>
</html>
"""

_QUALITIES = ("quality_small", "quality_large", "audc", "random_audc", "oracle_audc")


def html_bytes(
    *,
    large: str,
    rule: str,
    version: str,
    all_tasks: str,
    rows: Sequence[Mapping[str, Any]],
    differences: Sequence[str],
    warnings: Sequence[str],
    curve_png: bytes,
    parts_png: bytes,
) -> bytes:
    """The page; every text in it is escaped."""
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    page = template.render(
        large=large,
        rule=rule,
        version=version,
        all_tasks=all_tasks,
        rows=rows,
        qualities=_QUALITIES,
        differences=differences,
        warnings=warnings,
        curve_png=base64.b64encode(curve_png).decode(),
        parts_png=base64.b64encode(parts_png).decode(),
    )
    return page.encode()
