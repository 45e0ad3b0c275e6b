"""Other ways to keep and read the rows that bench_store_read.py reads.

Legend: E examples, T tokens, N rows, k cells per row.

Each writer puts the examples of a compact store into a folder, in its own way; each reader gives,
for some examples, the same row fields (FIELDS) and tokens (TOKENS) as caskd, concatenated.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from caskd.store.format import ROW_ENCODINGS
from caskd.store.read import TeacherStore

FIELDS = ("topk_ids", "topk_logits", "logsumexp", "tail_mass", "argmax")
TOKENS = ("token_ids", "is_response")
ON_DISK = (
    "topk_id_codes", "topk_id_order", "topk_logit_steps", "num_kept", "logsumexp", "tail_mass",
    "argmax", *TOKENS,
)  # fmt: skip
Read = Callable[[np.ndarray], list[np.ndarray]]


def caskd_reader(folder: Path, source: Path) -> Read:
    """TeacherStore, which checks every crc32c."""
    store = TeacherStore.open(source)

    def read(chosen: np.ndarray) -> list[np.ndarray]:
        batch = store.read(chosen, FIELDS)
        return [*(batch.column(name) for name in FIELDS), batch.token_ids, batch.is_response]

    return read


def _joined(starts: np.ndarray, ends: np.ndarray) -> list[slice]:
    """Parts of an axis; those that follow each other become one."""
    joined = np.flatnonzero(starts[1:] == ends[:-1])
    firsts, lasts = np.delete(starts, joined + 1), np.delete(ends, joined)
    return [slice(int(a), int(b)) for a, b in zip(firsts, lasts, strict=True)]


def _spans(store: TeacherStore, name: str, chosen: np.ndarray) -> list[slice]:
    """Where the examples stand in an array of the store."""
    axis = "token" if name in TOKENS else "row"
    starts = getattr(store.index, f"{axis}_start")[chosen]
    return _joined(starts, starts + getattr(store.index, f"{axis}_count")[chosen])


def _fields(got: dict[str, np.ndarray], orders: np.ndarray | None) -> list[np.ndarray]:
    """The fields from what a compact store holds, with caskd's own arithmetic."""
    assert orders is not None
    encoding, shape = ROW_ENCODINGS["topk", "compact"], got["topk_id_codes"].shape
    ids, logits = np.empty(shape, np.uint32), np.empty(shape, np.float32)
    encoding.decode("topk_ids", got, orders, ids)
    encoding.decode("topk_logits", got, orders, logits)
    return [ids, logits, *(got[name] for name in ("logsumexp", "tail_mass", "argmax", *TOKENS))]


def zarr_reader(folder: Path, source: Path) -> Read:
    """zarr-python as it comes, on caskd's own files."""
    import zarr

    store = TeacherStore.open(source)
    group = zarr.open_group(source / "data.zarr", mode="r", zarr_format=3)
    arrays = {name: group[name] for name in ON_DISK}

    def read(chosen: np.ndarray) -> list[np.ndarray]:
        got = {
            name: np.concatenate([array[span] for span in _spans(store, name, chosen)])
            for name, array in arrays.items()
        }
        return _fields(got, store.id_order)

    return read


def write_tensorstore(folder: Path, source: Path) -> None:
    """caskd's own arrays with blosc (zstd) wherever it has pcodec, which tensorstore has not."""
    import tensorstore as ts
    import zarr

    group = zarr.open_group(source / "data.zarr", mode="r", zarr_format=3)
    for name in ON_DISK:
        values = group[name][...]
        chunk = 512 if values.ndim == 2 else 16_384 if name in TOKENS else 4_096
        shard_shape = [65_536, *values.shape[1:]]
        metadata = {
            "shape": list(values.shape),
            "data_type": str(values.dtype),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
            "codecs": [_sharding(name, [chunk, *values.shape[1:]])],
        }
        spec = {"driver": "zarr3", "kvstore": _file(folder / name), "metadata": metadata}
        ts.open(spec, create=True).result().write(values).result()


def _file(path: Path) -> dict[str, str]:
    return {"driver": "file", "path": str(path)}


def _sharding(name: str, chunk_shape: list[int]) -> dict[str, object]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    options = {"cname": "zstd", "clevel": 4, "shuffle": "bitshuffle"}
    codecs = [little, {"name": "blosc", "configuration": options}, {"name": "crc32c"}]
    if name == "topk_logit_steps":
        codecs = [{"name": "transpose", "configuration": {"order": [1, 0]}}, *codecs]
    index = [little, {"name": "crc32c"}]
    configuration = {"chunk_shape": chunk_shape, "codecs": codecs, "index_codecs": index}
    return {"name": "sharding_indexed", "configuration": configuration}


def tensorstore_reader(folder: Path, source: Path) -> Read:
    """tensorstore without its cache, one thread of each kind."""
    import tensorstore as ts

    limits = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
    context = ts.Context({**limits, "cache_pool": {"total_bytes_limit": 0}})
    opened = {
        name: ts.open({"driver": "zarr3", "kvstore": _file(folder / name)}, context=context)
        for name in ON_DISK
    }
    arrays = {name: array.result() for name, array in opened.items()}
    store = TeacherStore.open(source)

    def read(chosen: np.ndarray) -> list[np.ndarray]:
        asked = {
            name: [array[span].read() for span in _spans(store, name, chosen)]
            for name, array in arrays.items()
        }
        got = {name: np.concatenate([p.result() for p in parts]) for name, parts in asked.items()}
        return _fields(got, store.id_order)

    return read


def _everything(source: Path) -> dict[str, np.ndarray]:
    """Whole fields and tokens of the examples in order, with where each example begins."""
    batch = TeacherStore.open(source)
    joined = batch.read(range(len(batch)), FIELDS)
    names = (*FIELDS, *TOKENS, "row_offsets", "token_offsets")
    return {name: getattr(joined, name) for name in names}


def _offsets(data: dict[str, np.ndarray], name: str) -> np.ndarray:
    return data["token_offsets" if name in TOKENS else "row_offsets"]


def write_memmap(folder: Path, source: Path) -> None:
    """One .npy file a field."""
    for name, values in _everything(source).items():
        np.save(folder / f"{name}.npy", values)


def memmap_reader(folder: Path, source: Path) -> Read:
    """numpy memory maps."""
    data = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}

    def read(chosen: np.ndarray) -> list[np.ndarray]:
        found = []
        for name in (*FIELDS, *TOKENS):
            offsets = _offsets(data, name)
            spans = _joined(offsets[chosen], offsets[chosen + 1])
            found.append(np.concatenate([data[name][span] for span in spans]))
        return found

    return read


def _table(source: Path) -> Any:
    """An Arrow table with one line an example."""
    import pyarrow as pa

    data, columns = _everything(source), {}
    for name in (*FIELDS, *TOKENS):
        width = data[name].shape[1] if data[name].ndim == 2 else 1
        offsets, flat = pa.array(_offsets(data, name) * width), pa.array(data[name].reshape(-1))
        columns[name] = pa.LargeListArray.from_arrays(offsets, flat)
    return pa.table(columns)


def _from_table(table: Any, top_k: int) -> list[np.ndarray]:
    flat = [
        table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        for name in (*FIELDS, *TOKENS)
    ]
    return _shaped(flat, top_k)


def _shaped(flat: list[np.ndarray], top_k: int) -> list[np.ndarray]:
    return [
        values.reshape(-1, top_k) if name.startswith("topk_") else values
        for name, values in zip((*FIELDS, *TOKENS), flat, strict=True)
    ]


def write_parquet(folder: Path, source: Path) -> None:
    """Parquet, zstd, 64 examples a row group."""
    import pyarrow.parquet as pq

    pq.write_table(_table(source), folder / "rows.parquet", compression="zstd", row_group_size=64)


def parquet_reader(folder: Path, source: Path) -> Read:
    """pyarrow; a row group is the least that it reads."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(folder / "rows.parquet")
    top_k = TeacherStore.open(source).spec.top_k

    def read(chosen: np.ndarray) -> list[np.ndarray]:
        groups = np.unique(chosen // 64)
        table = file.read_row_groups(groups.tolist(), use_threads=False)
        places = np.searchsorted(groups, chosen // 64) * 64 + chosen % 64
        return _from_table(table.take(places), top_k)

    return read


def write_arrow(folder: Path, source: Path) -> None:
    """One Arrow IPC file."""
    import pyarrow as pa

    table = _table(source)
    with pa.ipc.new_file(str(folder / "rows.arrow"), table.schema) as file:
        file.write_table(table)


def arrow_reader(folder: Path, source: Path) -> Read:
    """pyarrow on a memory map."""
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all()
    top_k = TeacherStore.open(source).spec.top_k
    return lambda chosen: _from_table(table.take(chosen), top_k)


def write_mds(folder: Path, source: Path) -> None:
    """mosaicml-streaming, uncompressed, one sample an example."""
    from streaming import MDSWriter

    data, columns = _everything(source), dict.fromkeys((*FIELDS, *TOKENS), "bytes")
    with MDSWriter(out=str(folder / "mds"), columns=columns) as out:
        for example in range(len(data["row_offsets"]) - 1):
            ends = {name: _offsets(data, name)[example : example + 2] for name in columns}
            out.write({name: data[name][a:b].tobytes() for name, (a, b) in ends.items()})


def mds_reader(folder: Path, source: Path) -> Read:
    """mosaicml-streaming's own reader of local shards."""
    from streaming.base.format.mds import MDSReader

    index = json.loads((folder / "mds" / "index.json").read_text())
    shards = [MDSReader.from_json(str(folder / "mds"), None, shard) for shard in index["shards"]]
    ends = np.cumsum([shard.samples for shard in shards])
    top_k = TeacherStore.open(source).spec.top_k
    dtypes = ("uint32", "float32", "float32", "float32", "uint32", "uint32", "uint8")

    def read(chosen: np.ndarray) -> list[np.ndarray]:
        which = np.searchsorted(ends, chosen, side="right")
        inside = chosen - ends[which] + np.array([shards[i].samples for i in which])
        samples = [shards[i][int(n)] for i, n in zip(which, inside, strict=True)]
        named = zip((*FIELDS, *TOKENS), dtypes, strict=True)
        joined = [(b"".join([sample[name] for sample in samples]), kind) for name, kind in named]
        return _shaped([np.frombuffer(data, kind) for data, kind in joined], top_k)

    return read


Write = Callable[[Path, Path], None]
READERS: dict[str, tuple[str, str, Write | None, Callable[[Path, Path], Read]]] = {
    "caskd": ("numpy", "crc32c of every chunk", None, caskd_reader),
    "zarr-python, default, same files": ("zarr", "crc32c of every chunk", None, zarr_reader),
    "tensorstore, blosc-zstd": (
        "tensorstore", "crc32c of every chunk", write_tensorstore, tensorstore_reader,
    ),
    "Parquet, zstd, 64 examples a group": ("pyarrow", "no", write_parquet, parquet_reader),
    "Arrow IPC, memory map": ("pyarrow", "no", write_arrow, arrow_reader),
    "numpy memmap": ("numpy", "no", write_memmap, memmap_reader),
    "mosaicml-streaming (MDS)": ("streaming", "no", write_mds, mds_reader),
}  # fmt: skip
