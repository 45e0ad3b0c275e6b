"""The text report of a plan: what to read before running the capture."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caskd.precompute.planning.alternatives import alternative_lines
from caskd.precompute.planning.corpus_stats import bars
from caskd.store.format import HEAD_SAMPLED, SAMPLED
from caskd.store.io import bytes_text, counted, duration_text, rate_text

Facts = Mapping[str, Any]
LONG_SHARD_SECONDS = 600.0
_SKIPPED = {
    "truncated": "cut at the limit",
    "too_long": "too long",
    "empty": "without a response token",
    "out_of_vocabulary": "with a token or a text outside the vocabulary",
    "chat_refused": "refused by the chat template",
    "unfinished": "unfinished answers, left out; --on-unfinished keep keeps them without an end",
}
_TEXT_COUNTS = {
    "own_borders": "examples keep the given part's own tokens, where the whole text would merge "
    "across its border",
    "rendered_bos": "records came rendered with BOS; no second one is added",
    "kept_unfinished": "answers are unfinished, and kept without an end (--on-unfinished keep)",
    "context_turns": "replies are context: they render differently in the whole conversation",
}
_TEXT = {
    "prompt": "prompt and response",
    "messages": "messages through the chat template, replies only",
    "text": "plain text, all of it response",
}


def plan_lines(facts: Facts) -> list[str]:
    """Format the facts of `plan_facts` for a terminal."""
    return [
        _title(facts),
        *_items(_corpus(facts)),
        *_items(_store(facts)),
        *_lengths(facts),
        *(_forecast(facts) if facts["forecast"] else []),
    ]


def _items(items: Iterator[tuple[str, str]]) -> list[str]:
    return [f"  {name.ljust(11)} {text}" for name, text in items]


def _title(facts: Facts) -> str:
    notes = ""
    if facts["reused"]:
        there = shards_there(facts["num_committed_shards"], facts["geometry"]["num_shards"])
        notes = f" (already planned; {there})"
    if facts["dry_run"]:
        notes += " (dry run: nothing is written)"
    return f"plan of {facts['store']}{notes}"


def _runs_as(facts: Facts) -> str:
    """The dtype that the teacher is loaded in, and what runs it, if this process does not."""
    capture = facts["identity"]["capture"]
    if capture.get("engine") == "server":
        return f"served by {capture['engine_version']}"
    engine = f" in vllm {capture['engine_version']}" if capture.get("engine") == "vllm" else ""
    return f"{facts['teacher']['load_dtype']}{engine}"


def _corpus(facts: Facts) -> Iterator[tuple[str, str]]:
    teacher, geometry = facts["teacher"], facts["geometry"]
    text, vocabulary = facts["identity"]["text"], facts["identity"]["vocabulary"]
    adapter = facts["identity"]["teacher"]["adapter"]
    yield (
        "teacher",
        f"{teacher['name']}, {_runs_as(facts)}"
        + (f", attention {teacher['attention']}" if teacher["attention"] else "")
        + (f", adapter {adapter['name']}" if adapter else ""),
    )
    if teacher["weights"]:
        yield "weights", _weights(teacher)
    yield (
        "vocabulary",
        f"{vocabulary['size']:,} tokens, "
        f"{min(teacher['num_ids'], vocabulary['size']):,} of them with a teacher column",
    )
    ending = "EOS after each response, " if text["eos"] and text["kind"] != "messages" else ""
    yield (
        "text",
        f"{_TEXT[text['kind']]}; {ending}at most {text['max_length']:,} tokens "
        f"(--on-long {text['on_long']})",
    )
    for name, meaning in _TEXT_COUNTS.items():
        if facts["text"].get(name):
            yield "", f"{facts['text'][name]:,} {meaning} ({name})"
    if facts["ignored_columns"]:
        yield "ignored", f"columns {', '.join(map(repr, facts['ignored_columns']))} of the data"
    yield "examples", f"{geometry['num_examples']:,} with {geometry['num_tokens']:,} tokens"
    for status, problem in _SKIPPED.items():
        count = facts["examples"].get(status, 0)
        if count:
            rows = "" if status == "truncated" else ", no rows"
            first = facts["first"][status]
            yield "", f"{count:,} {problem} ({status}{rows}), the first is record {first}"
    yield "duplicates", _duplicates(facts)
    labels = facts["labels"]
    yield (
        "labels",
        f"{labels['distinct']:,} distinct tokens, {labels['share_of_vocabulary']:.1%} of the "
        f"vocabulary; the 100 most frequent are {labels['share_of_top_100']:.0%} of the rows",
    )


def _weights(teacher: Facts) -> str:
    """Parameters and memory of the weights, and of each rank's part."""
    weights, ranks = teacher["weights"], teacher["tensor_parallel"]
    active = weights["num_active"]
    some = "" if active in (None, weights["num_parameters"]) else f" ({active:,} per token)"
    each = f", {bytes_text(weights['per_device'])} on each of {ranks} ranks" if ranks > 1 else ""
    return f"{weights['num_parameters']:,} parameters{some}, {bytes_text(weights['total'])}{each}"


def _duplicates(facts: Facts) -> str:
    duplicates, num_rows = facts["duplicates"], facts["geometry"]["num_rows"]
    if not duplicates["examples"]:
        return "none"
    count = (
        f"{duplicates['examples']:,} exact repeats of earlier examples, "
        f"the first is record {facts['first']['duplicate']}"
    )
    if facts["identity"]["text"].get("on_duplicate") == "skip":
        return f"{count}; skipped"
    return (
        f"{count}; they take {duplicates['rows']:,} rows, {duplicates['rows'] / num_rows:.1%} "
        f"(--on-duplicate skip omits them{_for_another_plan(facts)})"
    )


def _targets(capture: Mapping[str, Any]) -> str:
    if capture["kind"] == SAMPLED.name:
        return f"{capture['num_samples']:,} samples per row, seed {capture['sample_seed']}"
    if capture["kind"] == HEAD_SAMPLED.name:
        return (
            f"top {capture['head']:,} per row and {capture['num_samples']:,} samples of the other "
            f"tokens, seed {capture['sample_seed']}"
        )
    min_mass = capture["min_mass"]
    fewer = f", fewer where they reach probability {min_mass:g}" if min_mass < 1 else ""
    return f"top {capture['top_k']:,} per row{fewer}"


def _store(facts: Facts) -> Iterator[tuple[str, str]]:
    geometry, capture, sizes = facts["geometry"], facts["identity"]["capture"], facts["bytes"]
    yield (
        "rows",
        f"{geometry['num_rows']:,} in {counted(geometry['num_shards'], 'shard')} of "
        f"{geometry['shard_rows']:,}",
    )
    yield "kept", f"{_targets(capture)}, {facts['identity']['encoding']}"
    if not facts["forecast"]:
        per_row = [(sizes[end] - sizes["plan"]) / geometry["num_rows"] for end in ("least", "most")]
        yield (
            "size",
            f"{bytes_text(sizes['least'])} to {bytes_text(sizes['most'])}, "
            f"about {per_row[0]:.0f} to {per_row[1]:.0f} bytes per row without "
            "its tokens: estimated from other stores; run with --probe to measure",
        )


def shards_there(num_committed: int, num_shards: int) -> str:
    """How much of a planned store is captured."""
    are = "is" if num_committed == 1 else "are"
    return f"{num_committed:,} of {counted(num_shards, 'shard')} {are} there"


def _lengths(facts: Facts) -> list[str]:
    heads = ("median", "mean", "p90", "p99", "max")
    lines = [f"  {'tokens'.ljust(11)} " + "".join(head.rjust(9) for head in heads)]
    for part, lengths in facts["lengths"].items():
        cells = "".join(f"{lengths[head]:,}".rjust(9) for head in heads)
        lines.append(f"    {part.ljust(9)} {cells}")
    return [*lines, *(f"    {bar}" for bar in bars(facts["histogram"]))]


def _forecast(facts: Facts) -> list[str]:
    probe = facts["forecast"]
    online = probe["break_even"]
    limit = "" if probe["forward_seconds"] >= probe["encode_seconds"] else ", limited by encoding"
    memory = "of GPU memory" if probe["memory_of"] == "gpu" else "of memory in this process"
    lines = _items(
        iter(
            [
                ("probe", f"{probe['num_rows']:,} rows of the capture's own batches"),
                (
                    "time",
                    f"{duration_text(probe['seconds'])} on one device like this one "
                    f"({rate_text(probe['rows_per_second'], 'rows')}{limit}), and "
                    f"{duration_text(probe['load_seconds'])} to load the teacher",
                ),
                (
                    "memory",
                    f"{bytes_text(probe['memory_bytes'])} {memory}, "
                    f"in batches of {probe['batch_tokens']:,} tokens",
                ),
                (
                    "size",
                    f"{bytes_text(probe['bytes'])}, "
                    f"{sum(probe['bytes_per_row'].values()):.1f} bytes per row without its tokens",
                ),
                (
                    "pays",
                    f"from student-epoch {online['student_epochs']} on; teacher hours when it runs "
                    "beside every student in every epoch, and for one capture:",
                ),
            ]
        )
    )
    others = probe["alternatives"]
    instead = alternative_lines(others, others[0]["num_rows"] if others else 0)
    return [*lines, *_break_even(online), *instead, *_shard_advice(facts)]


def _shard_advice(facts: Facts) -> list[str]:
    """Advise smaller shards if one takes long: a stopped run loses the current shard."""
    probe, geometry = facts["forecast"], facts["geometry"]
    seconds = min(geometry["shard_rows"], geometry["num_rows"]) / probe["rows_per_second"]
    if seconds < LONG_SHARD_SECONDS:
        return []
    rows = max(512, int(probe["rows_per_second"] * LONG_SHARD_SECONDS / 5) // 512 * 512)
    return [
        f"  note        a shard takes {duration_text(seconds)}, lost if the run stops inside it; "
        f"--shard-rows {rows} loses less{_for_another_plan(facts)}"
    ]


def _for_another_plan(facts: Facts) -> str:
    """Where a flag takes effect that a written plan no longer takes."""
    return "" if facts["dry_run"] else " in a new plan: pass it with another --store"


def _break_even(online: Facts) -> list[str]:
    table = online["online_hours"]
    epochs: Sequence[str] = list(next(iter(table.values())))
    head = "".join(f"{n} epoch{'s' if n != '1' else ''}".rjust(11) for n in epochs)
    lines = [f"    {'students'.ljust(9)}{head}{'capture'.rjust(11)}"]
    for students, hours in table.items():
        cells = "".join(_hours(hours[n]).rjust(11) for n in epochs)
        lines.append(f"    {students.ljust(9)}{cells}{_hours(online['cask_hours']).rjust(11)}")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def next_step(facts: Facts) -> str:
    """The command to run after `caskd plan`."""
    if facts["dry_run"]:
        return (
            "next: run it without --dry-run to write the plan, or caskd precompute to fill it too"
        )
    store = shlex.quote(facts["store"])
    probe = "" if facts["forecast"] else "; --probe forecasts how long that takes"
    return f"next: run caskd precompute with the same options to fill {store}{probe}"
