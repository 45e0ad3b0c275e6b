"""Speed of reading a store directly from s3://, compared with the local disk.

    python benchmarks/bench_remote.py --rounds 5

Examples are read in the trainer's order (shards shuffled, examples shuffled in a window of four),
32 at a time, with the fields of cat-dist. A minimal server in a separate process on the same
machine answers GET and HEAD requests with ranges, each after `--latency-ms`. Each round runs every
variant once, in turn (the slow variant without prefetch in the first round only). Speeds are
medians over rounds. `of_local` is the median of the ratios within a round, because the speed of a
shared machine changes between rounds. Writes benchmarks/results/remote.csv.

Dimension letters: E examples, N rows, k cells per row, V vocabulary.
"""

import argparse
import csv
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store import TeacherStore
from caskd.store.corpus import TokenizedExample, vocab_digest
from caskd.store.format import DEFAULT_ENCODING
from caskd.store.read.shard_cache import ShardCache
from caskd.store.write import ShardWork, StoreWriter, plan_store
from caskd.train.data.order import WINDOW_BLOCKS, ExampleOrder, blocks_of

RESULTS = Path(__file__).parent / "results" / "remote.csv"
FIELDS = ("argmax", "num_kept", "topk_ids", "topk_logits", "logsumexp", "tail_mass")
BATCH, ROWS_PER_EXAMPLE, TOP_K, VOCAB_SIZE = 32, 128, 64, 49_152


def make_rows(num_rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Row fields [N] and [N, k] with Zipf-distributed ids and logits that fall with the rank."""
    ids = np.minimum(rng.zipf(1.3, (num_rows, 2 * TOP_K)), VOCAB_SIZE) - 1
    ids = (ids + np.arange(2 * TOP_K) * 7) % VOCAB_SIZE
    logits = 12 - np.cumsum(rng.exponential(0.15, (num_rows, TOP_K)), axis=1)
    logsumexp = np.log(np.exp(logits).sum(axis=1)) + rng.exponential(0.05, num_rows)
    return {
        "topk_ids": ids[:, :TOP_K].astype(np.uint32),
        "topk_logits": logits.astype(np.float32),
        "num_kept": np.full(num_rows, TOP_K, np.uint16),
        "logsumexp": logsumexp.astype(np.float32),
        "label_logit": logits[:, 0].astype(np.float32),
        "tail_mass": (1 - np.exp(logits - logsumexp[:, None]).sum(axis=1)).astype(np.float32),
        "argmax": ids[:, 0].astype(np.uint32),
        "label_rank": rng.geometric(0.6, num_rows).astype(np.uint32) - 1,
    }


def make_store(path: Path, num_shards: int, shard_rows: int) -> None:
    """Write a sealed store of full shards."""
    rng = np.random.default_rng(0)
    vocab = [f"t{i}".encode() for i in range(VOCAB_SIZE)]
    identity = {
        "teacher": {"name": "random", "revision": None, "weights_digest": "0", "adapter": None},
        "vocabulary": {
            "size": VOCAB_SIZE, "digest": vocab_digest(vocab), "tokenizer_digest": "0",
        },
        "text": {
            "kind": "prompt", "eos": True, "max_length": 512, "on_long": "error",
            "template_digest": None,
        },
        "corpus": {"digest": "0", "num_records": 0},
        "capture": {
            "kind": "topk", "top_k": TOP_K, "min_mass": 1.0, "load_dtype": "float32",
            "logits_dtype": "float32", "attention": "eager", "quantization": None,
            "temperature": 1.0,
        },
        "encoding": DEFAULT_ENCODING,
    }  # fmt: skip
    mask = np.repeat([0, 1], ROWS_PER_EXAMPLE).astype(np.uint8)
    examples = (
        TokenizedExample(
            rng.integers(0, VOCAB_SIZE, len(mask)).astype(np.uint32), mask, "ok", i, ""
        )
        for i in range(num_shards * shard_rows // ROWS_PER_EXAMPLE)
    )
    plan_store(path, identity, examples, shard_rows=shard_rows, vocab=vocab)
    writer = StoreWriter(path)
    rows = make_rows(shard_rows, rng)
    for shard in writer.missing_shards():
        work: ShardWork = writer.shard(shard)
        writer.commit(work, {name: np.roll(values, shard, 0) for name, values in rows.items()})
    writer.seal()


class _Objects(BaseHTTPRequestHandler):
    """Answers GET and HEAD: the path is /BUCKET/KEY, and KEY is a file below the server's root."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        server: Any = self.server
        time.sleep(server.latency)
        path = server.root / self.path.lstrip("/").partition("?")[0].partition("/")[2]
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        first, last = (int(wanted[1]), min(int(wanted[2]), size - 1)) if wanted else (0, size - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.flush()
        if with_body:
            with path.open("rb") as file:
                self.connection.sendfile(file, first, last - first + 1)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


def _serve(root: Path, latency: float, port: Any) -> None:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Objects)
    server.root, server.latency, server.daemon_threads = root, latency, True
    port.put(server.server_address[1])
    server.serve_forever()


@contextmanager
def object_server(root: Path, latency: float) -> Iterator[None]:
    """Serve `root` as every bucket, and point the environment at the server."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=_serve, args=(root, latency, port), daemon=True)
    process.start()
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port.get()}", AWS_ACCESS_KEY_ID="x",
        AWS_SECRET_ACCESS_KEY="x", AWS_REGION="us-east-1",
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.join()


def read_epoch(store: TeacherStore, seed: int, *, prefetch: bool) -> float:
    """Rows per second over one epoch, without the time to open the store."""
    index = store.index
    blocks = blocks_of(index.row_count, index.row_start, store.spec.shard_rows)
    order = ExampleOrder(blocks=blocks, seed=seed)
    chosen = order.at(np.arange(order.num_examples))
    ahead = 2 * WINDOW_BLOCKS * len(blocks[0])
    started, num_rows = time.perf_counter(), 0
    if prefetch:
        store.prefetch(chosen[:ahead], FIELDS)
    for start in range(0, len(chosen), BATCH):
        if prefetch:
            store.prefetch(chosen[start + ahead : start + ahead + BATCH], FIELDS)
        num_rows += store.read(chosen[start : start + BATCH], FIELDS).num_rows
    return num_rows / (time.perf_counter() - started)


def measure(path: Path, rounds: int) -> dict[str, list[float]]:
    """Rows per second of each variant in each round."""
    speeds: dict[str, list[float]] = {}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            cache = ShardCache(Path(folder), 1 << 40)
            other = ShardCache(Path(folder) / "other", 1 << 40)
            url = f"s3://bench/{path.name}"
            variants = {
                "local": (TeacherStore.open(path), True),
                "s3, empty cache": (TeacherStore.open_remote(url, cache=cache), True),
                "s3, full cache": (TeacherStore.open_remote(url, cache=cache), True),
            }
            if number == 0:
                variants["s3, empty cache, no prefetch"] = (
                    TeacherStore.open_remote(url, cache=other),
                    False,
                )
            for name, (store, prefetch) in variants.items():
                speeds.setdefault(name, []).append(read_epoch(store, number, prefetch=prefetch))
                print(f"round {number}: {name}: {speeds[name][-1]:,.0f} rows/s", flush=True)
    return speeds


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--shard-rows", type=int, default=16_384)
    parser.add_argument("--latency-ms", type=float, default=50)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        make_store(root / "store", options.shards, options.shard_rows)
        size = sum(p.stat().st_size for p in (root / "store").rglob("*") if p.is_file())
        with object_server(root, options.latency_ms / 1e3):
            speeds = measure(root / "store", options.rounds)
    finally:
        shutil.rmtree(root)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["variant", "rows_per_s", "of_local", "rows_per_s_min", "rows_per_s_max", "latency_ms",
             "rows", "shard_rows", "store_mb", "k", "rounds", "hardware", "cores", "load_average",
             "python", "notes"]
        )  # fmt: skip
        for name, values in speeds.items():
            ratios = [a / b for a, b in zip(values, speeds["local"], strict=False)]
            writer.writerow(
                [name, round(statistics.median(values)), round(statistics.median(ratios), 3),
                 round(min(values)), round(max(values)), options.latency_ms if "s3" in name else 0,
                 options.shards * options.shard_rows, options.shard_rows, round(size / 1e6, 1),
                 TOP_K, len(values), platform.processor() or platform.machine(), os.cpu_count(),
                 round(os.getloadavg()[0], 1), platform.python_version(),
                 "random rows; object server and reader share the machine"]
            )  # fmt: skip
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
