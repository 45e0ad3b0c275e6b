"""The card: README.md inside a store, for the person who finds it."""

from collections.abc import Mapping
from typing import Any

from caskd.store.spec import StoreSpec


def card(spec: StoreSpec, totals: Mapping[str, Any]) -> str:
    """Markdown that says what a store holds, how it was made and how to train from it."""
    statuses = ", ".join(f"{count:,} {name}" for name, count in sorted(totals["statuses"].items()))
    size = sum(totals["bytes"].values())
    text, teacher = spec.identity["text"], spec.identity["teacher"]
    capture = spec.identity["capture"]
    kept = (
        f"top {spec.top_k} of {spec.vocab_size:,} logits, log-sum-exp, argmax, "
        "the label's logit and rank"
    )
    return f"""# Teacher store: {spec.teacher}

What the frozen teacher said of every response token of a corpus, for training small models
without it.

| | |
|---|---|
| teacher | {spec.teacher}, revision {teacher["revision"]}, loaded as {capture["load_dtype"]} |
| examples | {spec.num_examples:,} ({statuses}) |
| rows (predicted response tokens) | {spec.num_rows:,} |
| tokens | {spec.num_tokens:,} |
| kept per row | {kept} |
| text | {text["kind"]}, EOS {"appended" if text["eos"] else "left out"} |
| size | {size / 1e6:,.1f} MB, {size / max(spec.num_rows, 1):,.1f} bytes a row |
| digest | {totals["commits_digest"]} |

Train from it, check it, look into it:

    caskd train --store THIS_DIRECTORY --student MODEL --out RUN --objective cat-dist ...
    caskd store verify THIS_DIRECTORY
    caskd store show THIS_DIRECTORY --example 0

**A store reveals its corpus:** token ids and token bytes are inside. Share it only where the text
itself may go.
"""
