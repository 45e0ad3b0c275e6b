# ruff: noqa: E501
"""Draw the pictures of README.md and docs/concepts.md into docs/pictures/.

python docs/draw_pictures.py
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).with_name("pictures")
INK, SOFT, LINE, PAPER = "#1f2933", "#52606d", "#9aa5b1", "#ffffff"
BLUE, ORANGE, GREEN, GREY = "#d6e8fa", "#fde3c8", "#d9f2e0", "#eef1f4"
DARK_BLUE, DARK_ORANGE = "#0b63a8", "#b45309"


def text(x: float, y: float, words: str, *, size: int = 14, color: str = INK, bold: bool = False,
         anchor: str = "middle") -> str:  # fmt: skip
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}"'
        f"{weight}>{escape(words)}</text>"
    )


def box(x: float, y: float, width: float, height: float, lines: Sequence[str], fill: str, *,
        size: int = 15) -> str:  # fmt: skip
    """A rectangle with a bold first line and soft further ones."""
    top = y + height / 2 - 9 * (len(lines) - 1) + 5
    shown = [
        text(x + width / 2, top + 18 * i, line, size=min(13, size) if i else size, color=SOFT if i else INK,
             bold=not i)
        for i, line in enumerate(lines)
    ]  # fmt: skip
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{fill}" '
        f'stroke="{LINE}"/>' + "".join(shown)
    )


def arrow(x1: float, y1: float, x2: float, y2: float, words: str = "", above: float = 8) -> str:
    label = text((x1 + x2) / 2, min(y1, y2) - above, words, size=12, color=SOFT) if words else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{SOFT}" stroke-width="1.6" '
        f'marker-end="url(#head)"/>' + label
    )


def path(points: Sequence[tuple[float, float]], color: str, dash: str = "") -> str:
    shown = " ".join(f"{x:g},{y:g}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{shown}" fill="none" stroke="{color}" stroke-width="2.4"{dashes}/>'


def picture(width: int, height: int, title: str, *parts: str) -> str:
    """A whole SVG: white paper, so that it is legible on a dark page too."""
    head = (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{SOFT}"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{escape(title)}</title>{head}'
        f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def overview() -> str:
    return picture(
        900, 250, "The teacher runs once and fills a store; students train from it; the cascade is measured",
        box(20, 30, 170, 78, ["Teacher", "large model", "runs once"], ORANGE),
        box(20, 142, 170, 78, ["Corpus", "prompts and", "responses"], GREY),
        box(270, 86, 170, 78, ["Store", "top-k logits of each", "response token"], GREEN),
        box(520, 18, 150, 62, ["Student A", "small model"], BLUE),
        box(520, 94, 150, 62, ["Student B", "other size or loss"], BLUE),
        box(520, 170, 150, 62, ["Student C", "next week's idea"], BLUE),
        box(740, 70, 140, 110, ["Cascade", "student answers,", "defers if unsure", "to the teacher"], ORANGE),
        arrow(190, 69, 266, 112), arrow(190, 181, 266, 138),
        text(236, 72, "precompute", size=12, color=SOFT),
        arrow(440, 112, 516, 52), arrow(440, 125, 516, 125, "train"), arrow(440, 138, 516, 198),
        arrow(670, 52, 736, 106), arrow(670, 125, 736, 125), arrow(670, 198, 736, 144),
        text(716, 58, "predict, eval", size=12, color=SOFT),
    )  # fmt: skip


def cascade() -> str:
    return picture(
        760, 190, "A cascade: the small model answers, and defers when its score reaches the threshold",
        box(20, 65, 120, 60, ["Question"], GREY),
        box(210, 65, 150, 60, ["Small model", "answer and score"], BLUE),
        box(560, 20, 180, 60, ["Its answer is used", "cheap"], GREEN),
        box(560, 110, 180, 60, ["Large model", "answers instead"], ORANGE),
        arrow(140, 95, 206, 95),
        arrow(360, 88, 556, 50), arrow(360, 102, 556, 140),
        text(452, 48, "score < threshold", size=13, color=SOFT),
        text(452, 152, "score >= threshold", size=13, color=SOFT),
    )  # fmt: skip


def deferral() -> str:
    """Quality over the deferral rate: the curve, deferral at random and the oracle."""

    def at(rate: float, quality: float) -> tuple[float, float]:
        return 70 + 400 * rate, 260 - 230 * (quality - 0.4) / 0.6

    curve = [
        (0, 0.5),
        (0.1, 0.58),
        (0.2, 0.66),
        (0.3, 0.74),
        (0.45, 0.84),
        (0.6, 0.9),
        (0.8, 0.94),
        (1, 0.95),
    ]
    points = [at(*p) for p in curve]
    area = " ".join(f"{x:g},{y:g}" for x, y in [(70, 260), *points, (470, 260)])
    ticks = [text(70 + 400 * r, 280, f"{r:.0%}", size=12, color=SOFT) for r in (0, 0.5, 1)]
    return picture(
        700, 320, "Quality over the share of deferred questions",
        f'<polygon points="{area}" fill="{BLUE}" opacity="0.6"/>',
        path([(70, 25), (70, 260), (475, 260)], LINE),
        path([at(0, 0.5), at(1, 0.95)], SOFT, "7 5"),
        path([at(0, 0.5), at(0.47, 0.97), at(1, 0.95)], SOFT, "2 5"),
        path(points, DARK_BLUE),
        text(270, 225, "AUDC: this area", size=14, color=DARK_BLUE, bold=True),
        text(270, 305, "deferral rate: share of questions that the large model answers", size=13, color=SOFT),
        text(62, 40, "quality", size=13, color=SOFT, anchor="end"),
        *ticks,
        text(490, 60, "oracle: defers where it helps", size=13, color=SOFT, anchor="start"),
        text(490, 100, "cascade with a deferral rule", size=13, color=DARK_BLUE, anchor="start"),
        text(490, 140, "deferral at random", size=13, color=SOFT, anchor="start"),
        path([(490, 68), (560, 68)], SOFT, "2 5"), path([(490, 108), (560, 108)], DARK_BLUE),
        path([(490, 148), (560, 148)], SOFT, "7 5"),
    )  # fmt: skip


def mask() -> str:
    """Five response tokens: label, first choices of both models, and whether the token counts."""
    rows = (
        ("label y", "The", "year", "is", "1492", "."),
        ("student's first choice", "The", "date", "is", "1066", "."),
        ("teacher's first choice", "The", "year", "was", "1500", "."),
        ("mask a of cat-*", "1", "1", "1", "0", "1"),
    )
    parts = []
    for j, row in enumerate(rows):
        y = 24 + 48 * j
        parts.append(text(178, y + 25, row[0], size=14, anchor="end", bold=j == 3))
        for i, word in enumerate(row[1:]):
            right = rows[0][i + 1]
            fill = GREY if j == 0 else (GREEN if word in (right, "1") else ORANGE)
            parts.append(box(190 + 104 * i, y, 96, 40, [word], fill))
    parts.append(text(450, 240, "1492: neither model predicts it; the loss leaves it out and the cascade "
                      "defers it", size=13, color=SOFT))  # fmt: skip
    return picture(
        740, 262, "The mask keeps a token that the student or the teacher predicts", *parts
    )


def tail() -> str:
    heights = [150, 92, 60, 40, 28, 20, 14, 10]
    bars = [
        f'<rect x="{50 + 46 * i}" y="{190 - h}" width="36" height="{h}" fill="{BLUE}" stroke="{DARK_BLUE}"/>'
        for i, h in enumerate(heights)
    ]
    rest = [
        f'<rect x="{450 + 7 * i}" y="{190 - h:g}" width="5" height="{h:g}" fill="{ORANGE}"/>'
        for i, h in enumerate(max(1.0, 9 - 0.4 * j) for j in range(24))
    ]
    return picture(
        760, 260, "The top-k of a row, and its tail",
        path([(40, 190), (730, 190)], LINE), *bars, *rest,
        text(228, 212, "the k likeliest tokens: ids and logits are stored", size=13, color=DARK_BLUE),
        text(575, 212, "all other tokens: the tail", size=13, color=DARK_ORANGE),
        text(575, 232, "only their total probability is stored", size=13, color=SOFT),
        text(575, 110, "one bucket in the loss", size=14, color=DARK_ORANGE, bold=True),
        arrow(575, 118, 540, 172),
        text(228, 232, "exact order, rounded values", size=13, color=SOFT),
    )  # fmt: skip


def store() -> str:
    columns = (
        "topk_ids",
        "topk_logits",
        "logsumexp",
        "tail_mass",
        "argmax",
        "label_logit",
        "label_rank",
    )
    cells = [box(250 + 70 * i, 150, 64, 44, [name.split("_")[0], name.partition("_")[2] or " "], BLUE,
                 size=11)
             for i, name in enumerate(columns)]  # fmt: skip
    return picture(
        760, 290, "The files of a store and the fields of a row",
        box(20, 20, 200, 50, ["store.json", "teacher, vocabulary, corpus"], ORANGE),
        box(20, 84, 200, 50, ["data.zarr/", "Zarr v3 arrays"], BLUE),
        box(20, 148, 200, 50, ["commits/", "a record per shard"], GREEN),
        box(20, 212, 200, 50, ["seal.json", "written last: complete"], GREY),
        text(495, 40, "token axis: every token of every example", size=14, bold=True),
        text(495, 62, "token_ids, is_response", size=13, color=SOFT),
        text(495, 100, "row axis: one row per response token", size=14, bold=True),
        text(495, 122, "the teacher's distribution of that token", size=13, color=SOFT),
        *cells,
        text(495, 236, "A shard is 65,536 rows: computed, checked and committed on its own.", size=13, color=SOFT),
        text(495, 258, "Every chunk carries a checksum; a sealed store never changes.", size=13, color=SOFT),
        arrow(220, 109, 246, 150),
    )  # fmt: skip


PICTURES = {
    f"{draw.__name__}.svg": draw for draw in (overview, cascade, deferral, mask, tail, store)
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
