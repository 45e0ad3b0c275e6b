"""The card: README.md inside a store, for the person who finds it.

What a store says of itself may come from anybody: it is made harmless for a terminal and Markdown.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from caskd.store.format import StoreSpec

if TYPE_CHECKING:
    from caskd.store.inspect.quality import TeacherQuality
from caskd.store.io import markdown_line

LICENSE_HEADING = "## License"
NO_LICENSE = """\
Not stated yet. Write here under which terms the corpus and the teacher's output may be used; the
teacher's own license may say what may be made from what it says. `caskd store card --write` keeps
this section."""
_INTRODUCTION = """\
What the frozen teacher said of every response token of a corpus, for training small models
without it."""
_WARNING = """\
**A store reveals its corpus:** the token ids and the bytes of every token are inside, so the text
can be read back. Share it only where the text itself may go."""
_UNKNOWN = "not recorded"


def card(
    spec: StoreSpec,
    totals: Mapping[str, Any],
    quality: "TeacherQuality | None" = None,
    license_note: str = NO_LICENSE,
) -> str:
    """Markdown that says what a store holds, how it was made, how good it is and how to use it.

    Args:
        spec: of the store.
        totals: what `seal.json` says.
        quality: how the teacher did on the labels; left out when not measured.
        license_note: the section that people fill in.
    """
    sections = [
        f"# Teacher store: {markdown_line(spec.teacher)}",
        _INTRODUCTION,
        _WARNING,
        "## What is inside",
        _table(_contents(spec, totals)),
        "## How it was made",
        _table(_making(spec)),
    ]
    if quality is not None:
        sections += ["## How good it is", _table(quality.rows()), quality.histogram()]
    sections += [LICENSE_HEADING, license_note, "## Use it", _USE.format(top=_objective(spec))]
    return "\n\n".join(sections) + "\n"


_USE = """Train from it, check it, look into it:

    caskd train --store THIS_DIRECTORY --student MODEL --out RUN --objective {top} \\
        --steps 1000 --global-batch-size 32 --micro-batch-size 8 --lr 2e-5
    caskd store verify THIS_DIRECTORY
    caskd store show THIS_DIRECTORY --example 0

MODEL is a model with the teacher's vocabulary; any other is refused. The teacher is not needed."""


def _objective(spec: StoreSpec) -> str:
    return "cat-dist" if spec.num_cells > 1 else "cat-xent"


def _contents(spec: StoreSpec, totals: Mapping[str, Any]) -> dict[str, str]:
    statuses = sorted(totals["statuses"].items())
    size, num_rows = sum(totals["bytes"].values()), spec.num_rows
    kept = f"{spec.row_kind.kept_of_text(spec.num_cells, spec.vocab_size)}, log-sum-exp, argmax"
    kept += ", tail mass" if spec.row_kind.has_tail else ""
    return {
        "examples": f"{spec.num_examples:,} ({', '.join(f'{n:,} {name}' for name, n in statuses)})",
        "tasks": ", ".join(spec.tasks[:12]) + (", ..." if len(spec.tasks) > 12 else ""),
        "tokens": f"{spec.num_tokens:,}",
        "rows (predicted response tokens)": f"{num_rows:,} in {spec.num_shards:,} shards",
        "kept per row": f"{kept}, the label's logit and rank ({spec.encoding} encoding)",
        "size": f"{size / 1e6:,.1f} MB, {size / max(num_rows, 1):,.1f} bytes a row",
        "digest": str(totals["commits_digest"]),
    }


def _making(spec: StoreSpec) -> dict[str, str]:
    teacher, text = spec.identity["teacher"], spec.identity["text"]
    capture, corpus = spec.identity["capture"], spec.identity.get("corpus", {})
    eos = "EOS appended" if text["eos"] else "no EOS"
    values = {
        "teacher": f"{spec.teacher}, revision {teacher.get('revision') or _UNKNOWN}",
        "weights digest": teacher.get("weights_digest"),
        "adapter": teacher.get("adapter"),
        "loaded as": f"{capture['load_dtype']}, attention {capture.get('attention')}",
        "quantization": capture.get("quantization"),
        "text": f"{text['kind']}, {eos}, at most {text.get('max_length')} tokens, longer ones: "
        f"{text.get('on_long')}",
        "corpus": f"{corpus.get('num_records')} records, digest {corpus.get('digest')}",
        "kept until a mass of": capture.get("min_mass"),
        "seed of the draws": capture.get("sample_seed"),
        "vocabulary digest": spec.vocab_digest,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {markdown_line(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def license_note(existing_card: str) -> str:
    """What people wrote into the license section of a card; the empty form if there is none."""
    _, found, rest = existing_card.partition(f"\n{LICENSE_HEADING}\n")
    if not found:
        return NO_LICENSE
    return re.split(r"\n## ", rest, maxsplit=1)[0].strip() or NO_LICENSE
