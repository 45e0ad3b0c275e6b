"""The report: tables, plots, the HTML page and its folder."""

from caskd.eval.report.differences import (
    area_fields,
    contrast_fields,
    contrast_table,
    difference_row,
)
from caskd.eval.report.folder import CASCADE, FORMAT, check_folder, check_not_a_file, write_files
from caskd.eval.report.layout import Part, Plot, Report, build_files, file_names, picture_of
from caskd.eval.report.page import Heads, Picture, Section, html_bytes, table
from caskd.eval.report.plot_style import (
    PAPER,
    arm_lines,
    dress,
    in_percent,
    legend_below,
    panels,
    png_bytes,
)
from caskd.eval.report.report import CASCADE_FILES, cascade_report
from caskd.eval.report.sentences import difference_line, questions_line

__all__ = [
    "CASCADE",
    "CASCADE_FILES",
    "FORMAT",
    "PAPER",
    "Heads",
    "Part",
    "Picture",
    "Plot",
    "Report",
    "Section",
    "area_fields",
    "arm_lines",
    "build_files",
    "cascade_report",
    "check_folder",
    "check_not_a_file",
    "contrast_fields",
    "contrast_table",
    "difference_line",
    "difference_row",
    "dress",
    "file_names",
    "html_bytes",
    "in_percent",
    "legend_below",
    "panels",
    "picture_of",
    "png_bytes",
    "questions_line",
    "table",
    "write_files",
]
