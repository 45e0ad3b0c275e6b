"""Views of a store: summary, single examples, differences, card, capture progress."""

from caskd.store.inspect.capture_progress import CaptureStatus, watch
from caskd.store.inspect.diff import diff_lines, diff_stores
from caskd.store.inspect.info import info_rows, info_text, store_info
from caskd.store.inspect.quality import TeacherQuality, measure_quality
from caskd.store.inspect.show import example_json, example_view
from caskd.store.inspect.store_card import (
    PLAN_COUNTS,
    card,
    license_note,
    origin,
    read_text_counts,
    text_counts,
)

__all__ = [
    "PLAN_COUNTS",
    "CaptureStatus",
    "TeacherQuality",
    "card",
    "diff_lines",
    "diff_stores",
    "example_json",
    "example_view",
    "info_rows",
    "info_text",
    "license_note",
    "measure_quality",
    "origin",
    "read_text_counts",
    "store_info",
    "text_counts",
    "watch",
]
