"""The card: README.md inside a store, which describes it to a reader.

A store's metadata is untrusted: it is escaped for terminals and Markdown.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caskd.store.errors import StoreError
from caskd.store.format import ENVIRONMENT, StoreSpec, untrusted_json, unusual_capture
from caskd.store.io import bytes_text, counted, escape_markdown, files

if TYPE_CHECKING:
    from caskd.store.inspect.quality import TeacherQuality

PLAN_COUNTS = "plan.json"
"""File under environment/ with what a plan counted of its text."""
LICENSE_HEADING = "## License"
NO_LICENSE = """\
Not stated yet. State here the terms of use of the corpus and of the teacher's outputs. The
teacher's license may restrict the use of its outputs. `caskd store card --write` keeps this
section."""
_INTRODUCTION = """\
Outputs of a frozen teacher for every response token of a corpus. Small models train from them
without the teacher."""
_WARNING = """\
**A store reveals its corpus:** it holds the token ids and the bytes of every token, so anyone can
reconstruct the text. Share it only with people who may read the text."""
_UNKNOWN = "not recorded"


def card(
    spec: StoreSpec,
    totals: Mapping[str, Any],
    quality: "TeacherQuality | None" = None,
    license_note: str = NO_LICENSE,
    text_counts: Mapping[str, int] | None = None,
) -> str:
    """The card as Markdown: contents, origin, teacher quality, license and use.

    Args:
        spec: the store's spec.
        totals: the content of `seal.json`.
        quality: teacher quality on the labels; its section is omitted if None.
        license_note: text of the license section, which users edit.
        text_counts: what the plan counted of the text, by name.
    """
    text_counts = totals.get("counts") or text_counts or {}
    sections = [
        f"# Teacher store: {escape_markdown(spec.teacher)}",
        _INTRODUCTION,
        *_imported(spec),
        _WARNING,
        "## Contents",
        _table(
            _contents(spec, totals)
            | _text_rows(spec, text_counts)
            | _import_rows(spec, text_counts)
        ),
        "## Origin",
        _table(origin(spec)),
    ]
    if quality is not None:
        sections += ["## Teacher quality", _table(quality.rows()), quality.histogram()]
    sections += [
        LICENSE_HEADING,
        license_note,
        "## Use",
        _USE.format(top=_objective(spec) + _accept(spec)),
    ]
    return "\n\n".join(sections) + "\n"


def _imported(spec: StoreSpec) -> list[str]:
    if spec.imported_from is None:
        return []
    return [
        f"**Imported from {escape_markdown(spec.imported_from)}:** another program captured these "
        "rows. caskd checked their form, not that the named teacher computed them."
    ]


_USE = """Train from the store, verify it, show an example:

    caskd train --store THIS_DIRECTORY --student MODEL --out RUN --objective {top} \\
        --steps 1000 --global-batch-size 32 --micro-batch-size 8 --lr 2e-5
    caskd store verify THIS_DIRECTORY
    caskd store show THIS_DIRECTORY --example 0

MODEL must have the teacher's vocabulary. Training does not need the teacher."""


def _accept(spec: StoreSpec) -> str:
    """Flags that a run needs to read rows that caskd did not capture."""
    if spec.imported_from is None:
        return ""
    unknown = spec.capture_fields["tail"] == "unknown"
    return " --accept-imported" + (" --tail renormalise" if unknown else "")


def _objective(spec: StoreSpec) -> str:
    if spec.capture_fields["argmax"] == "unknown":
        return "dist"
    return "cat-dist" if spec.num_cells > 1 else "cat-xent"


def _contents(spec: StoreSpec, totals: Mapping[str, Any]) -> dict[str, str]:
    statuses = sorted(totals["statuses"].items())
    size, num_rows = sum(totals["bytes"].values()), spec.num_rows
    known_as = spec.capture_fields
    kept = spec.row_kind.kept_of_text(spec.identity["capture"], spec.vocab_size)
    if known_as["values"] == "logits":
        kept += ", log-sum-exp"
    elif spec.row_kind.has_tail:
        kept += " as log-probs"
    kept += ", argmax" if known_as["argmax"] != "unknown" else ""
    kept += ", tail mass" if spec.row_kind.has_tail and known_as["tail"] != "unknown" else ""
    label = "logit and rank" if known_as["argmax"] != "unknown" else "logit"
    return {
        "examples": f"{spec.num_examples:,} ({', '.join(f'{n:,} {name}' for name, n in statuses)})",
        "tasks": ", ".join(spec.tasks[:12]) + (", ..." if len(spec.tasks) > 12 else ""),
        "tokens": f"{spec.num_tokens:,}",
        "rows (predicted response tokens)": f"{num_rows:,} in {counted(spec.num_shards, 'shard')}",
        "kept per row": f"{kept}, the label's {label} ({spec.encoding} encoding)",
        "size": f"{bytes_text(size)}, {size / max(num_rows, 1):,.1f} bytes per row with its tokens",
        "digest": str(totals["commits_digest"]),
    }


_TEXT_COUNTS = {
    "own_borders": "examples whose given part keeps its own tokens, where the whole text merges "
    "across its border",
    "rendered_bos": "records that came rendered with BOS",
    "context_turns": "replies that are context, because they render differently in the whole",
}


_ROW_COUNTS = {
    "pad_rows": "rows that predict padding were dropped",
    "cut_rows": "rows lost cells",
    "lost_rows": "rows lost all cells",
    "resorted_rows": "rows were sorted again",
    "tied_argmax_rows": "rows have two largest values",
    "overfull_rows": "rows were rescaled to probability 1",
    "capped_rows": "rows do not have the label among their ids",
}


def _import_rows(spec: StoreSpec, counts: Mapping[str, int]) -> dict[str, str]:
    """What an import counted of its rows."""
    counted = [f"{counts[name]:,} {text}" for name, text in _ROW_COUNTS.items() if counts.get(name)]
    return {"import": "; ".join(counted)} if spec.imported_from is not None and counted else {}


def _text_rows(spec: StoreSpec, counts: Mapping[str, int]) -> dict[str, str]:
    """The rule of the text, and what was counted by it."""
    counted = [
        f"{counts[name]:,} {text}" for name, text in _TEXT_COUNTS.items() if counts.get(name)
    ]
    return {"text rule": "; ".join([str(spec.text_rule), *counted])}


def text_counts(root: Path) -> dict[str, int]:
    """What the plan of a local store counted of its text; empty if it counted nothing."""
    name = f"{ENVIRONMENT}/{PLAN_COUNTS}"
    if files.size_inside(root, name) is None:
        return {}
    try:
        return read_text_counts(files.read_small(root, name))
    except (StoreError, OSError):
        return {}  # environment/ is outside the seal; an unreadable file is no damage


def read_text_counts(data: bytes) -> dict[str, int]:
    """The counts in the bytes of `environment/plan.json`; empty if it is not one.

    Raises:
        UnsafeError: not JSON.
    """
    value = untrusted_json.parse_json(data, PLAN_COUNTS)
    counts = value.get("text") if isinstance(value, dict) else None
    return dict(counts) if counts and untrusted_json.is_counts(counts) else {}


def origin(spec: StoreSpec) -> dict[str, str]:
    """Teacher, text, corpus and vocabulary of a store in words, by name."""
    teacher, text = spec.identity["teacher"], spec.identity["text"]
    capture, corpus = spec.identity["capture"], spec.identity.get("corpus", {})
    eos = "EOS appended" if text["eos"] else "no EOS"
    values = {
        "teacher": f"{spec.teacher}, revision {teacher.get('revision') or _UNKNOWN}",
        "weights digest": teacher.get("weights_digest"),
        "identity": "a fingerprint of its answers; the weights were not seen"
        if teacher.get("fingerprint") and not teacher.get("weights_digest")
        else None,
        "capture": unusual_capture(spec.identity) or None,
        "adapter": teacher.get("adapter"),
        "loaded as": f"{capture['load_dtype']}, attention {capture.get('attention')}"
        if spec.capture_fields["engine"] == "transformers"
        else None,
        "quantization": capture.get("quantization"),
        "text": f"{text['kind']}, {eos}, at most {text.get('max_length')} tokens, longer ones: "
        f"{text.get('on_long')}",
        "corpus": f"{corpus.get('num_records')} records, digest {corpus.get('digest')}",
        "kept up to a mass of": capture.get("min_mass"),
        "seed of the draws": capture.get("sample_seed"),
        "vocabulary digest": spec.vocab_digest,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {escape_markdown(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def license_note(existing_card: str) -> str:
    """The license section of an existing card; the default text if it has none."""
    _, found, rest = existing_card.partition(f"\n{LICENSE_HEADING}\n")
    if not found:
        return NO_LICENSE
    return re.split(r"\n## ", rest, maxsplit=1)[0].strip() or NO_LICENSE
