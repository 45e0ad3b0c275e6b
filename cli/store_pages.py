"""Pages of a store in the dress of the report: what it holds, its teacher's quality, an example."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from caskd.store.errors import UsageError
from caskd.store.format import StoreSpec
from caskd.store.inspect import TeacherQuality, example_json, info_rows, origin, store_info
from caskd.store.io import bytes_text, check_room, counted, files, strip_control, tell
from caskd.store.read import TeacherStore
from caskd.store.storage import clean_url

TERMS: Mapping[str, str] = {
    "row": "What the teacher computed for one response token, from all tokens before it.",
    "label": "The token that stands in the corpus at that position.",
    "rank of the label": "Number of tokens that the teacher finds likelier; 0 is its argmax.",
    "top-k": "The k likeliest tokens of a row, with their logits.",
    "tail mass": "Probability of all tokens outside the top-k.",
    "log-sum-exp": "Turns logits into probabilities: p = exp(logit - log-sum-exp).",
    "shard": "The rows that one worker captures and commits at once.",
    "sealed": "Complete and checked; a sealed store never changes.",
}
_FOOT = "caskd store verify reads every byte of the store again; this page was made without that."


def check_new_page(page: str | None) -> None:
    """Stop if the file of `--html` exists, or cannot be written.

    Raises:
        UsageError: it is there.
    """
    if page is None:
        return
    if Path(page).exists():
        raise UsageError(
            f"--html {page}: file already exists; expected a new file; pass another one or "
            "remove it"
        )
    check_room(Path(page), "--html")


def write_page(page: str, content: bytes) -> None:
    """Write the file of `--html` and name it."""
    files.replace_file(Path(page), content)
    tell(f"wrote {page}")


def store_page(url: str, quality: TeacherQuality | None = None, license_text: str = "") -> bytes:
    """The page of a store.

    Args:
        url: directory or URL of the store, sealed or not.
        quality: of the teacher on the labels, if it was measured.
        license_text: paragraphs of the card's license section.
    """
    from caskd.eval.report import Section, html_bytes

    info, spec = store_info(url), TeacherStore.open(url, allow_unsealed=True).spec
    facts = info_rows(info)
    if quality is not None:
        facts.pop("labels", None)  # measured on a sample
    sections = [
        Section(
            lead=_lead(info, quality),
            warnings=_warnings(spec, info),
            tables=[_facts(facts)],
        )
    ]
    if quality is not None:
        sections.append(_quality_section(quality))
    sections += [
        _size_section(info),
        Section("Origin", tables=[_facts(origin(spec))]),
    ]
    if license_text:
        sections.append(Section("License", texts=license_text.split("\n\n")))
    sections += [
        Section("Use", commands=_commands(url)),
        Section("Terms", terms=TERMS),
    ]
    title = f"Teacher store {strip_control(info['name'])}"
    return html_bytes(
        title, sections, metadata.version("caskd"), window="Teacher store", foot=_FOOT
    )


def _facts(rows: Mapping[str, str]) -> Any:
    from caskd.eval.report import table

    heads = {"name": ("item", "text"), "value": ("value", "long")}
    return table(heads, [{"name": n, "value": strip_control(v)} for n, v in rows.items()])


def _lead(info: Mapping[str, Any], quality: TeacherQuality | None) -> str:
    state = "Sealed" if info["sealed"] else "Not sealed"
    text = (
        f"{state}: {counted(info['num_rows'], 'row')} of "
        f"{counted(info['num_examples'], 'example')}, {bytes_text(info['bytes'])}."
    )
    if quality is not None and quality.accuracy is not None:
        text += f" In {quality.accuracy:.1%} of the rows the label is the teacher's argmax."
    return text


def _warnings(spec: StoreSpec, info: Mapping[str, Any]) -> list[str]:
    found = [
        "A store reveals its corpus: it holds the token ids and the bytes of every token, so "
        "anyone can reconstruct the text. Share it only with people who may read the text."
    ]
    if not info["sealed"]:
        found.append(
            f"{info['num_committed_shards']} of {counted(info['num_shards'], 'shard')} are "
            "committed. Run caskd precompute again to capture the rest."
        )
    if spec.imported_from is not None:
        found.append(
            f"Imported from {strip_control(spec.imported_from)}: caskd checked the form of "
            "these rows, not that the named teacher computed them."
        )
    return found


def _commands(url: str) -> list[str]:
    place = strip_control(clean_url(url))
    return [
        f"caskd store show {place} --example 0",
        f"caskd store verify {place}",
        f"caskd train --store {place} --student MODEL --out RUN --steps 1000",
    ]


def _quality_section(quality: TeacherQuality) -> Any:
    from caskd.eval.report import Section, table

    names = quality.rank_names()
    heads = {"rank": ("rank", "text"), "rows": ("rows", ",d"), "share": ("share", ".2%")}
    rows = [
        {"rank": name, "rows": count, "share": count / quality.num_rows}
        for name, count in zip(names, quality.ranks, strict=True)
    ]
    percent = [100 * count / quality.num_rows for count in quality.ranks]
    texts = []
    if quality.accuracy is not None:
        texts.append(
            "The masks of cat-xent and cat-dist keep every token whose label is the teacher's "
            f"argmax, so at least {quality.accuracy:.1%} of the tokens count in their loss."
        )
    return Section(
        "Teacher quality on the labels",
        texts=texts,
        pictures=[_bars(names, percent, "rows, %", "Rows by rank of the label")] if rows else [],
        tables=[
            _facts(quality.rows()),
            *([table(heads, rows, "Rank of the label")] if rows else []),
        ],
    )


def _size_section(info: Mapping[str, Any]) -> Any:
    from caskd.eval.report import Section, table

    rows = [
        {
            "name": name,
            "type": field["dtype"] + (f" x {field['cells']}" if field["cells"] > 1 else ""),
            "bytes": field["bytes_per_row"],
        }
        for name, field in info["fields"].items()
    ]
    heads = {"name": ("field", "text"), "type": ("type", "text"), "bytes": ("bytes a row", ",.2f")}
    names, sizes = list(info["fields"]), [row["bytes"] or 0.0 for row in rows]
    return Section(
        "Size by field",
        pictures=[_bars(names, sizes, "bytes a row", "Bytes a row of each field")],
        tables=[table(heads, rows)],
        notes=["Compressed. The tokens and the index of the examples take further bytes."],
    )


def _bars(names: Sequence[str], values: Sequence[float], x: str, alt: str) -> Any:
    """A picture with one bar for each name, the first above."""
    from caskd.eval.report import PAPER, dress, panels, picture_of

    figure, (axes,) = panels(1)
    axes.barh(names[::-1], values[::-1], color=PAPER.color(0))
    dress(axes, "", x)
    return picture_of(figure, alt)


def example_page(store: TeacherStore, example: int) -> bytes:
    """The page of one example, token by token."""
    from caskd.eval.report import Section, html_bytes, table

    value = example_json(store, example)
    last = ("tail_mass", "tail mass", ".4f") if store.spec.row_kind.has_tail else (
        "num_kept", "distinct ids", "d")  # fmt: skip
    heads = {
        "position": ("position", "d"), "label_text": ("label", "text"),
        "label_rank": ("rank", ",d"), "label_probability": ("p(label)", ".3f"),
        "choices": ("teacher's choices", "long"), last[0]: last[1:],
    }  # fmt: skip
    rows = [{**row, "choices": _choices(row)} for row in value["rows"]]
    parts = groupby(value["tokens"], key=lambda token: token["is_response"])
    origin_text = store.spec.imported_from
    section = Section(
        lead=f"Task {value['task'] or '-'}, status {value['status']}, source line "
        f"{value['source_index']}, {counted(len(rows), 'row')}.",
        warnings=[f"Imported from {strip_control(origin_text)}."] if origin_text else [],
        bullets=[
            f"{'Response' if is_response else 'Context'}: {''.join(t['text'] for t in tokens)}"
            for is_response, tokens in parts
        ],
        tables=[table(heads, rows)],
    )
    title = f"Example {example} of teacher store {strip_control(store.name)}"
    return html_bytes(
        title, [section, Section("Terms", terms=TERMS)], metadata.version("caskd"),
        window="Teacher store", foot=_FOOT,
    )  # fmt: skip


def _choices(row: Mapping[str, Any]) -> str:
    if not row["num_kept"]:
        return "no row"
    return ", ".join(f"{one['text']} ({one['probability']:.3f})" for one in row["choices"])
