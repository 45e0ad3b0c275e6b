"""Draw docs/architecture.svg from the imports of the code: `python docs/draw_architecture.py`.

Each package (cli, precompute, ...) is a panel. Its folders, and the modules in no folder,
are boxes on floors: every box stands above all boxes that it imports. An arrow leads from the
importer to what it imports; arrows that follow from others are left out (transitive reduction).
Equal code gives equal bytes: tests/unit/test_docs.py compares the committed picture with a new one.
"""

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"

ROWS = (("cli",), ("precompute", "train", "eval"), ("models",), ("store",))
PACKAGES = {
    "cli": "the caskd command: imports the chosen command and passes it the flags",
    "precompute": "corpus and teacher in, store out",
    "train": "store in, student out",
    "eval": "predictions in, report out",
    "models": "what caskd knows of a transformers model; may import torch",
    "store": "the teacher store: numpy and zarr, never torch",
}

MIN_WIDTH, MARGIN = 980, 20
BOX, FLOOR = 26, 52  # height of a box, and from one floor to the next
HEAD, FOOT, BETWEEN = 52, 18, 34  # of a panel; between two rows of panels
GAP, SIDE = 14, 16  # between two boxes; from a panel's edge to its boxes
LETTER, NOTE = 7.3, 6.8  # width of a letter of a name, and of a note, at the most

Graph = dict[str, set[str]]


# --- reading ---------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """Path of each module by its name below `caskd`; a front door has the name of its folder."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, package: str) -> Iterator[str]:
    """Names below `caskd` that a module imports.

    A string `caskd.module:name` counts where it names another package: the table of commands
    imports a command when a user chooses it.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("caskd."):
            yield from (f"{node.module}.{alias.name}".partition(".")[2] for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = re.fullmatch(r"caskd\.((\w+)[\w.]*):\w+", node.value)
            if match and match[2] != package:
                yield match[1]


def box_of(name: str) -> str:
    """The box of a module or of a name in it: its folder, or the module if it stands in none."""
    return ".".join(name.split(".")[:2])


def read_graphs() -> tuple[dict[str, int], Graph, Graph]:
    """Read the code: modules per box (0: the box is a module), imports of boxes and of packages."""
    sizes: dict[str, int] = {}
    boxes: Graph = {}
    packages: Graph = {package: set() for package in PACKAGES}
    for name, path in modules().items():
        box, package = box_of(name), name.split(".")[0]
        is_folder = (ROOT / box.replace(".", "/")).is_dir()
        if box != package and not box.endswith("__main__"):
            sizes[box] = sizes.get(box, 0) + (is_folder and path.name != "__init__.py")
            boxes.setdefault(box, set())
        for target in imported(path, package):
            if target.split(".")[0] != package:
                packages[package].add(target.split(".")[0])
            elif box in boxes and box_of(target) != box:
                boxes[box].add(box_of(target))
    boxes = {box: targets & sizes.keys() for box, targets in boxes.items()}
    return sizes, boxes, packages


def reduced(graph: Mapping[str, Collection[str]]) -> Graph:
    """The graph without edges that a longer way replaces (transitive reduction)."""
    reach: Graph = {}

    def below(node: str) -> set[str]:
        if node not in reach:
            reach[node] = set(graph[node]).union(*(below(target) for target in graph[node]))
        return reach[node]

    return {
        node: {t for t in targets if not any(t in below(other) for other in targets)}
        for node, targets in graph.items()
    }


# --- laying out ------------------------------------------------------------------------------


@dataclass
class Panel:
    """One package: its boxes by floor from the top, with the edges between neighbouring floors."""

    package: str
    sizes: Mapping[str, int]
    edges: list[tuple[str, str]]
    """Every arrow, importer first."""
    floors: list[list[str]] = field(default_factory=list)
    """Nodes from left to right; an arrow that passes a floor has a node `from>to>floor` there."""
    links: list[tuple[str, str]] = field(default_factory=list)
    """Nodes of neighbouring floors that a piece of an arrow connects."""
    x: dict[str, float] = field(default_factory=dict)
    """Centre of each node, from the panel's left edge."""
    left: float = 0.0
    top: float = 0.0
    width: float = 0.0
    height: float = 0.0

    @property
    def needed_height(self) -> float:
        return HEAD + (len(self.floors) - 1) * FLOOR + BOX + FOOT

    @property
    def needed_width(self) -> float:
        floors = max(map(self.floor_width, self.floors))
        return max(floors, NOTE * len(PACKAGES[self.package])) + 2 * SIDE

    def y(self, floor: int) -> float:
        """Upper edge of the boxes of a floor; the floors stand in the middle of the panel."""
        return self.top + HEAD + (self.height - self.needed_height) / 2 + floor * FLOOR

    def label(self, box: str) -> str:
        """Name of a box: `folder/`, or `module.py`."""
        return box.partition(".")[2] + ("/" if self.sizes[box] else ".py")

    def node_width(self, node: str) -> float:
        if node not in self.sizes:
            return 4.0
        digits = len(str(self.sizes[node])) + 1 if self.sizes[node] else 0
        return round(LETTER * (len(self.label(node)) + digits) + 18)

    def floor_width(self, floor: Sequence[str]) -> float:
        return sum(self.node_width(node) for node in floor) + GAP * (len(floor) - 1)


def heights(graph: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Floor of each box, 0 at the ground: above all that it imports, but near its importers."""
    height: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in height:
            height[node] = 1 + max((of(target) for target in graph[node]), default=-1)
        return height[node]

    for node in sorted(graph):
        of(node)
    for node in sorted(graph, key=lambda node: (-height[node], node)):
        importers = [height[other] for other in graph if node in graph[other]]
        if len(importers) > len(graph[node]):
            height[node] = min(importers) - 1
    return height


def build_panel(package: str, sizes: Mapping[str, int], graph: Graph) -> Panel:
    """Floors, order and positions of a package's boxes."""
    own = {box: graph[box] for box in sorted(graph) if box.startswith(f"{package}.")}
    panel = Panel(package, sizes, [(box, target) for box in own for target in sorted(own[box])])
    height = heights(own)
    highest = max(height.values())
    panel.floors = [
        [box for box in own if height[box] == highest - floor] for floor in range(highest + 1)
    ]
    for source, target in panel.edges:
        passed = [f"{source}>{target}>{h}" for h in range(height[source] - 1, height[target], -1)]
        for node, h in zip(passed, range(height[source] - 1, height[target], -1), strict=True):
            panel.floors[highest - h].append(node)
        panel.links += pairwise([source, *passed, target])
    untangle(panel)
    return panel


def crossings(panel: Panel) -> int:
    """How many pairs of arrow pieces cross."""
    index = {node: i for floor in panel.floors for i, node in enumerate(floor)}
    count = 0
    for upper in panel.floors:
        here = [(index[a], index[b]) for a, b in panel.links if a in upper]
        count += sum(a < c and b > d for a, b in here for c, d in here)
    return count


def untangle(panel: Panel) -> None:
    """Order each floor so that few arrows cross: means of neighbours, then swaps."""
    best, fewest = [list(floor) for floor in panel.floors], crossings(panel)
    for sweep in range(12):
        down = sweep % 2 == 0
        for floor in panel.floors if down else reversed(panel.floors):
            index = {node: i / len(f) for f in panel.floors for i, node in enumerate(f)}
            floor.sort(key=lambda node: _mean(neighbours(panel, node, up=down), index, index[node]))
        _swap(panel)
        if crossings(panel) < fewest:
            best, fewest = [list(floor) for floor in panel.floors], crossings(panel)
    panel.floors = best


def neighbours(panel: Panel, node: str, *, up: bool) -> list[str]:
    """Nodes of the floor above or below that an arrow connects with this one."""
    return [a if up else b for a, b in panel.links if (b if up else a) == node]


def _mean(nodes: Iterable[str], value: Mapping[str, float], otherwise: float) -> float:
    values = [value[node] for node in nodes]
    return sum(values) / len(values) if values else otherwise


def _swap(panel: Panel) -> None:
    """Exchange neighbours on a floor as long as that takes crossings away."""
    fewest = crossings(panel)
    improved = True
    while improved:
        improved = False
        for floor in panel.floors:
            for i in range(len(floor) - 1):
                floor[i], floor[i + 1] = floor[i + 1], floor[i]
                count = crossings(panel)
                improved = improved or count < fewest
                if count >= fewest:
                    floor[i], floor[i + 1] = floor[i + 1], floor[i]
                fewest = min(count, fewest)


def place_boxes(panel: Panel) -> None:
    """Set positions in a panel of known width: each node near its neighbours, in floor order."""
    for floor in panel.floors:
        x = (panel.width - panel.floor_width(floor)) / 2
        for node in floor:
            panel.x[node] = x + panel.node_width(node) / 2
            x += panel.node_width(node) + GAP
    for sweep in range(40):
        for floor in panel.floors if sweep % 2 else reversed(panel.floors):
            wished = [
                _mean(
                    neighbours(panel, node, up=True) + neighbours(panel, node, up=False),
                    panel.x,
                    panel.x[node],
                )
                for node in floor
            ]
            panel.x.update(zip(floor, _apart(panel, floor, wished), strict=True))
    left = min(panel.x[node] - panel.node_width(node) / 2 for node in panel.x)
    right = max(panel.x[node] + panel.node_width(node) / 2 for node in panel.x)
    shift = (panel.width - left - right) / 2
    panel.x = {node: x + shift for node, x in panel.x.items()}


def _apart(panel: Panel, floor: Sequence[str], wished: Sequence[float]) -> list[float]:
    """Positions near the wished ones that keep the boxes apart and inside the panel."""
    sizes = [panel.node_width(node) for node in floor]
    right = _pushed(wished, sizes)
    left = _mirrored(_pushed(_mirrored(wished, panel), sizes[::-1]), panel)
    middle = _pushed([(a + b) / 2 for a, b in zip(left, right, strict=True)], sizes)
    return _mirrored(_pushed(_mirrored(middle, panel), sizes[::-1]), panel)


def _pushed(centres: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """The centres, moved to the right where boxes overlap or leave the panel on the left."""
    pushed, edge = [], float(SIDE)
    for centre, size in zip(centres, sizes, strict=True):
        pushed.append(max(centre, edge + size / 2))
        edge = pushed[-1] + size / 2 + GAP
    return pushed


def _mirrored(centres: Sequence[float], panel: Panel) -> list[float]:
    return [panel.width - centre for centre in reversed(centres)]


def lay_out() -> tuple[dict[str, Panel], Graph, tuple[float, float]]:
    """All panels with their positions, the arrows between packages, and the picture's size."""
    sizes, boxes, packages = read_graphs()
    graph = reduced(boxes)
    panels = {package: build_panel(package, sizes, graph) for package in PACKAGES}
    rows = [[panels[name] for name in names] for names in ROWS]
    width = max(MIN_WIDTH, *(_row_width(row) for row in rows))
    top: float = MARGIN
    for row in rows:
        spare = (width - _row_width(row)) / len(row)
        left: float = MARGIN
        for panel in row:
            panel.left, panel.top, panel.width = left, top, panel.needed_width + spare
            panel.height = max(other.needed_height for other in row)
            left += panel.width + BETWEEN / 2
            place_boxes(panel)
        top += row[0].height + BETWEEN
    return panels, reduced(packages), (width, top - BETWEEN + MARGIN)


def _row_width(row: Sequence[Panel]) -> float:
    return sum(panel.needed_width for panel in row) + BETWEEN / 2 * (len(row) - 1) + 2 * MARGIN


# --- drawing ---------------------------------------------------------------------------------

STYLE = """
text { font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328 }
.package { font-size: 16px; font-weight: 700 }
.note { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #57606a }
.count { fill: #0550ae }
.paper { fill: #ffffff }
.panel { fill: #f6f8fa; stroke: #8c959f }
.folder { fill: #ddf4ff; stroke: #0969da }
.module { fill: #ffffff; stroke: #8c959f; stroke-dasharray: 3 2 }
.arrow { fill: none; stroke: #6e7781; stroke-width: 1 }
.tip { fill: #6e7781 }
.between { fill: none; stroke: #0969da; stroke-width: 2.5 }
.between-tip { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .note { fill: #9198a1 }
  .count { fill: #79c0ff }
  .paper { fill: #0d1117 }
  .panel { fill: #151b23; stroke: #656c76 }
  .folder { fill: #10294a; stroke: #4493f8 }
  .module { fill: #0d1117; stroke: #656c76 }
  .arrow { stroke: #9198a1 }
  .tip { fill: #9198a1 }
  .between { stroke: #4493f8 }
  .between-tip { fill: #4493f8 }
}
"""

LEGEND = (
    "An arrow leads from the importer to what it imports: thick between packages, thin inside one. "
    "Arrows that follow from others are left out.",
    "folder/ N: a folder with N modules. Dashed: a module that stands in no folder.",
)


def draw() -> str:
    """The picture, as SVG text."""
    panels, packages, (width, height) = lay_out()
    height += 18 * len(LEGEND)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-labelledby="title">',
        '<title id="title">The packages of caskd, their folders, and who imports whom</title>',
        f"<style>{STYLE}</style>",
        "<defs>",
        _tip("tip", 7),
        _tip("between-tip", 4.5),
        "</defs>",
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>',
    ]
    for package, targets in packages.items():
        lines += [_between(panels[package], panels[target]) for target in sorted(targets)]
    for panel in panels.values():
        lines += _panel(panel)
    for row, text in enumerate(LEGEND):
        y = height - MARGIN - 18 * (len(LEGEND) - 1 - row)
        lines.append(f'<text class="note" x="{MARGIN}" y="{y:.0f}">{escape(text)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _tip(name: str, size: float) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="{size}" '
        f'markerHeight="{size}" orient="auto"><path class="{name}" d="M0 0L8 4L0 8z"/></marker>'
    )


def _between(importer: Panel, target: Panel) -> str:
    """A thick arrow between two packages; what stands between them covers it."""
    narrow = min(importer, target, key=lambda panel: panel.width)
    x = narrow.left + narrow.width / 2
    return (
        f'<path class="between" marker-end="url(#between-tip)" '
        f'd="M{x:.1f} {importer.top + importer.height:.1f}V{target.top - 1:.1f}"/>'
    )


def _panel(panel: Panel) -> list[str]:
    left, top = panel.left, panel.top
    lines = [
        f'<rect class="panel" x="{left:.1f}" y="{top:.1f}" width="{panel.width:.1f}" '
        f'height="{panel.height:.1f}" rx="8"/>',
        f'<text class="package" x="{left + SIDE:.1f}" y="{top + 22:.1f}">{panel.package}/</text>',
        f'<text class="note" x="{left + SIDE:.1f}" y="{top + 38:.1f}">'
        f"{escape(PACKAGES[panel.package])}</text>",
    ]
    lines += _arrows(panel)
    for number, floor in enumerate(panel.floors):
        for box in floor:
            if box in panel.sizes:
                lines += _box(panel, box, panel.y(number))
    return lines


def _box(panel: Panel, box: str, y: float) -> list[str]:
    width, size = panel.node_width(box), panel.sizes[box]
    x = panel.left + panel.x[box]
    count = f' <tspan class="count">{size}</tspan>' if size else ""
    return [
        f'<rect class="{"folder" if size else "module"}" x="{x - width / 2:.1f}" y="{y:.1f}" '
        f'width="{width:.1f}" height="{BOX}" rx="4"/>',
        f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">'
        f"{escape(panel.label(box))}{count}</text>",
    ]


def _arrows(panel: Panel) -> list[str]:
    """One smooth path an arrow; at a box, arrows stand apart in the order of their other ends."""
    y = {node: panel.y(number) for number, floor in enumerate(panel.floors) for node in floor}
    leave = {node: _ports(panel, node, up=False) for node in y}
    enter = {node: _ports(panel, node, up=True) for node in y}
    lines = []
    for source, target in panel.edges:
        between = sorted((n for n in y if n.startswith(f"{source}>{target}>")), key=y.__getitem__)
        path = ""
        for a, b in pairwise([source, *between, target]):
            x1, y1, x2, y2 = leave[a][b], y[a] + BOX, enter[b][a], y[b]
            path += f"M{x1:.1f} {y1:.1f}" if not path else f"V{y1:.1f}"
            bend = (y2 - y1) / 2
            path += f"C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"
        lines.append(f'<path class="arrow" marker-end="url(#tip)" d="{path}"/>')
    return lines


def _ports(panel: Panel, node: str, *, up: bool) -> dict[str, float]:
    """Where the arrows to each neighbour meet the upper or lower edge of a node."""
    others = sorted(neighbours(panel, node, up=up), key=lambda other: (panel.x[other], other))
    step = min(14.0, (panel.node_width(node) - 12) / max(len(others), 1))
    if node not in panel.sizes:
        step = 0.0
    first = panel.left + panel.x[node] - step * (len(others) - 1) / 2
    return {other: first + step * i for i, other in enumerate(others)}


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
