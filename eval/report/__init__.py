"""The report: tables, plots, the HTML page and its folder."""

from caskd.eval.report.differences import (
    area_fields,
    contrast_fields,
    contrast_table,
    difference_row,
)
from caskd.eval.report.folder import FORMAT, SUMMARY, check_folder, write_files
from caskd.eval.report.page import Heads, Picture, Section, html_bytes, table
from caskd.eval.report.plot_style import (
    PAPER,
    arm_lines,
    dress,
    in_percent,
    legend_below,
    on_dark,
    panels,
    png_bytes,
    svg_bytes,
)
from caskd.eval.report.report import evaluate_cascades
from caskd.eval.report.sentences import difference_line
from caskd.eval.report.tables import csv_bytes

__all__ = [
    "FORMAT",
    "PAPER",
    "SUMMARY",
    "Heads",
    "Picture",
    "Section",
    "area_fields",
    "arm_lines",
    "check_folder",
    "contrast_fields",
    "contrast_table",
    "csv_bytes",
    "difference_line",
    "difference_row",
    "dress",
    "evaluate_cascades",
    "html_bytes",
    "in_percent",
    "legend_below",
    "on_dark",
    "panels",
    "png_bytes",
    "svg_bytes",
    "table",
    "write_files",
]
