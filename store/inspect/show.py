"""One example of a store as text or JSON, token by token; needs no tokenizer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from caskd.store.format import SAMPLED, STATUSES, Array, RowKind
from caskd.store.io import counted, escape_control
from caskd.store.read import StoreBatch, TeacherStore

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderableType
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

NUM_CHOICES = 4
_CHOICE_WIDTH = 16
"""Columns of a choice's text; a longer token is cut."""


def token_text(token: bytes) -> str:
    """A token's bytes as printable text: white space as symbols, other control as escapes."""
    text = token.decode("utf-8", errors="backslashreplace")
    return escape_control(
        text.replace(" ", "\u2423").replace("\n", "\u21b5").replace("\t", "\u21e5")
    )


def example_json(store: TeacherStore, example: int) -> dict[str, Any]:
    """The example as JSON types: tokens, status and one entry per row."""
    batch, vocab = store.read([example]), store.vocab
    index, known_as = store.index, store.spec.capture_fields
    return {
        "example": example,
        "source_index": int(index.source_index[example]),
        "task": store.spec.tasks[int(index.task[example])],
        "status": STATUSES[int(index.status[example])],
        "tokens": [
            {"id": int(i), "text": token_text(vocab[i]), "is_response": bool(r)}
            for i, r in zip(batch.token_ids, batch.is_response, strict=True)
        ],
        "rows": [_row_json(batch, vocab, n, known_as) for n in range(batch.num_rows)],
    }


def _row_json(
    batch: StoreBatch, vocab: list[bytes], n: int, known_as: Mapping[str, str]
) -> dict[str, Any]:
    """One row; what the store's capture fields call unknown is None."""
    num_kept, logsumexp = (batch.column(f)[n] for f in ("num_kept", "logsumexp"))
    num_shown = min(NUM_CHOICES, int(num_kept))
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a damaged or hostile store may hold any value
        label_probability = float(np.exp(batch.column("label_logit")[n] - logsumexp))
    has_label = known_as["label"] == "exact" or not np.isneginf(batch.column("label_logit")[n])
    has_rank = known_as["argmax"] != "unknown"
    has_tail = batch.tail_mass is not None and known_as["tail"] != "unknown"
    return {
        "position": int(batch.logit_positions[n]) + 1,
        "label": int(batch.labels[n]),
        "label_text": token_text(vocab[batch.labels[n]]),
        "label_rank": int(batch.column("label_rank")[n]) if num_shown and has_rank else None,
        "label_probability": label_probability if num_shown and has_label else None,
        "num_kept": int(num_kept),
        "tail_mass": float(batch.column("tail_mass")[n]) if num_shown and has_tail else None,
        "choices": [
            {"id": int(i), "text": token_text(vocab[i]), "probability": float(p)}
            for i, p in zip(*_choices(batch, n, num_shown), strict=True)
        ],
    }


def _choices(batch: StoreBatch, n: int, num_shown: int) -> tuple[Array, Array]:
    """First ids of a row and their probabilities; of a sampled store, fractions of the draws."""
    if batch.sampled_ids is not None:
        counts = batch.column("sampled_counts")[n]
        total = max(int(counts.sum(dtype=np.int64)), 1)
        share = counts[:num_shown] / total
        if batch.num_head is not None:  # the head's probabilities, then shares of the rest
            logits = batch.column("head_logits")[n, :num_shown].astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                head = np.exp(logits - batch.column("logsumexp")[n])
            own = np.arange(num_shown) < batch.num_head[n]
            share = np.where(own, head, share * batch.column("drawn_mass")[n])
        return batch.sampled_ids[n, :num_shown], share
    with np.errstate(over="ignore", invalid="ignore"):
        probabilities = np.exp(batch.column("topk_logits")[n] - batch.column("logsumexp")[n])
    return batch.column("topk_ids")[n, :num_shown], probabilities[:num_shown]


def example_view(store: TeacherStore, example: int) -> "Group":
    """The example as a rich renderable, without interpreting store content as markup."""
    from rich.console import Group
    from rich.text import Text

    value = example_json(store, example)
    task = escape_control(value["task"]) or "-"
    heading = Text(
        f"example {example}: task {task}, status {value['status']}, "
        f"source line {value['source_index']}, {counted(len(value['rows']), 'row')}"
        + (f", imported from {origin}" if (origin := store.spec.imported_from) else "")
    )
    body = Text("text  ")
    for token in value["tokens"]:
        body.append(token["text"], style="bold green" if token["is_response"] else "dim")
    return Group(heading, body, _rows_table(value["rows"], store.spec.row_kind))


@dataclass(frozen=True)
class _Choices:
    """A cell that breaks between choices only, never between a choice and its probability."""

    items: "list[Text]"

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "Iterator[RenderableType]":
        from rich.text import Text

        lines: list[list[Text]] = [[]]
        for item in self.items:
            width = sum(part.cell_len + 2 for part in lines[-1]) + item.cell_len
            if lines[-1] and width > options.max_width:
                lines.append([])
            lines[-1].append(item)
        for line in lines:
            yield Text("  ").join(line)

    def __rich_measure__(self, console: "Console", options: "ConsoleOptions") -> "Measurement":
        from rich.measure import Measurement

        widths = [item.cell_len for item in self.items] or [1]
        return Measurement(max(widths), sum(widths) + 2 * (len(widths) - 1))


def _rows_table(rows: list[dict[str, Any]], kind: RowKind) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    last = "tail mass" if kind.has_tail else "distinct ids"
    # Numbers keep their width on a narrow terminal; labels are cut and choices are wrapped.
    table.add_column("position", justify="right", no_wrap=True, min_width=8)
    table.add_column("label", no_wrap=True, min_width=8, max_width=16)
    table.add_column("rank", justify="right", no_wrap=True, min_width=5)
    table.add_column("p(label)", justify="right", no_wrap=True, min_width=8)
    table.add_column("most frequent draws" if kind is SAMPLED else "teacher's choices")
    table.add_column(last, justify="right", no_wrap=True, min_width=len(last))
    for row in rows:
        rank = row["label_rank"]
        if not row["num_kept"]:
            table.add_row(str(row["position"]), Text(row["label_text"]), "-", "-", "no row", "-")
            continue
        style = "" if rank is None else _rank_style(rank)
        choices = []
        for choice in row["choices"]:
            mark = "bold green" if choice["id"] == row["label"] else ""
            shown = Text(choice["text"], style=mark)
            shown.truncate(_CHOICE_WIDTH, overflow="ellipsis")
            choices.append(shown.append(f" {choice['probability']:.3f}", style="dim"))
        table.add_row(
            str(row["position"]),
            Text(row["label_text"], style=style),
            Text(_number(rank, "d"), style=style),
            _number(row["label_probability"], ".3f"),
            _Choices(choices),
            _number(row["tail_mass"], ".4f") if kind.has_tail else str(row["num_kept"]),
        )
    return table


def _rank_style(rank: int) -> str:
    return "green" if rank == 0 else "yellow" if rank < NUM_CHOICES else "red"


def _number(value: float | None, style: str) -> str:
    """The value as text; a question mark where the store does not know it."""
    return "?" if value is None else format(value, style)
