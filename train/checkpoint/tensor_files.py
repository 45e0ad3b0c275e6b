"""Named tensors in a directory of safetensors files of bounded size, written and read one by one.

Nothing is ever unpickled. Writing and reading hold at most one file's tensors in memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from caskd.store.errors import CorruptError
from caskd.store.io import check_readable

PIECE_BYTES = 2 << 30


def write_tensors(
    directory: Path, tensors: Iterable[tuple[str, Tensor]], piece_bytes: int = PIECE_BYTES
) -> None:
    """Write named CPU tensors to DIRECTORY/00000.safetensors, 00001.safetensors, ...

    Without tensors the directory is empty.

    Args:
        piece_bytes: size at which a file is closed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    piece: dict[str, Tensor] = {}
    size = num_pieces = 0

    def close() -> None:
        nonlocal piece, size, num_pieces
        save_file(piece, directory / f"{num_pieces:05d}.safetensors")
        piece, size, num_pieces = {}, 0, num_pieces + 1

    for name, tensor in tensors:
        piece[name] = tensor.contiguous()
        size += tensor.nbytes
        if size >= piece_bytes:
            close()
    if piece:
        close()


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of `write_tensors` by name; each is read on access.

    Raises:
        CorruptError: a file is damaged, or a name is missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, Any] = {}
        for path in sorted(directory.glob("*.safetensors")):
            try:
                file: Any = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                check_readable(error, str(path))
                raise CorruptError(f"{path}: not a safetensors file", cure=REMEDY) from None
            self._files.update(dict.fromkeys(file.keys(), file))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise CorruptError(f"{self._directory}: tensor {name} is missing", cure=REMEDY)
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


REMEDY = "remove that checkpoint's directory and use an earlier one"
