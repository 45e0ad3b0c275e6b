"""Compile the kernels for GPUs that need not be present; called by test_losses_kernels.py.

Prints a line per kernel: the GPU's generation, the kernel, its variant and block, the bytes of a
program's shared memory and of its code. Fails where a block takes more shared memory than forecast.
"""

import itertools
from collections.abc import Iterable

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from caskd.models.kernels import Block, candidates, shared_bytes, shared_limit
from caskd.precompute.rows import triton_passes
from caskd.precompute.rows.passes import BLOCK
from caskd.train.loss import triton_kernels

ROWS = {"logits": "*fp32", "stride": "i32", "peak": "*fp32", "num_columns": "i32"}
READ = ROWS | {"argmax": "*i64", "total": "*fp32"}
DIFFERENTIATE = ROWS | {
    "gradient_stride": "i32",
    "live": "*i64",
    "weight": "*fp32",
    "labels": "*i64",
    "at_label": "*fp32",
    "softcap": "fp32",
}
TILE = {"logits": "*bf16", "stride": "i32", "num_columns": "i32"}
MAXIMA = TILE | {"maxima": "*fp32", "bad": "*i32", "num_blocks": "i32"}
REST = TILE | {
    "high": "*fp32",
    "last": "*fp32",
    "last_id": "*i64",
    "label_logit": "*fp32",
    "label": "*i64",
    "outside": "*fp32",
    "earlier": "*i32",
}


DEFAULT = Block(4096, 8)
ALL = (80, 86, 89, 90, 100)


def compiled(
    kernel: object, types: dict[str, str], constants: dict[str, int], sm: int, block: Block
) -> str:
    """Bytes of a program's shared memory, and of the machine code, of a kernel for GPUs of compute
    capability sm / 10."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    source = ASTSource(kernel, signature, constants)
    options = {"num_warps": block.num_warps, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    limit = shared_limit(divmod(sm, 10))
    assert made.metadata.shared <= shared_bytes(block) <= limit, (sm, block, made.metadata.shared)
    return f"{made.metadata.shared} {len(made.asm['cubin'])}"


def loss_kernels(sm: int, block: Block, variants: Iterable[tuple[str, bool]]) -> None:
    """Those of the loss; variants are dtype of the gradient, and whether logits are capped."""
    columns = {"COLUMNS": block.columns}
    if block == DEFAULT or block.columns < DEFAULT.columns:
        print(sm, "read", block, compiled(triton_kernels._read_row, READ, columns, sm, block))
    for operand, capped in variants:
        types = DIFFERENTIATE | {"gradient": f"*{operand}"}
        constants = columns | {"HAS_SOFTCAP": capped}
        line = compiled(triton_kernels._differentiate_row, types, constants, sm, block)
        print(sm, f"differentiate {operand} {capped}", block, line)


def capture_kernels(sm: int, block: Block) -> None:
    """Those of the capture."""
    constants = {"BLOCKS": block.columns // BLOCK, "WIDTH": BLOCK}
    print(sm, "maxima", block, compiled(triton_passes._read_maxima, MAXIMA, constants, sm, block))
    if block == DEFAULT:
        columns = {"COLUMNS": block.columns}
        print(sm, "rest", block, compiled(triton_passes._read_rest, REST, columns, sm, block))


def main() -> None:
    every = list(itertools.product(("bf16", "fp32"), (False, True)))
    for sm in ALL:
        loss_kernels(sm, DEFAULT, every if sm in (80, 90) else every[:1])
        capture_kernels(sm, DEFAULT)
    for sm in (80, 90):
        loss_kernels(sm, Block(64, 8), every)
    widest = Block(8192, 4)  # of those that may be measured where there is least shared memory
    assert widest in candidates((8, 6), 128_256)
    loss_kernels(86, widest, every[:1])
    capture_kernels(86, widest)


if __name__ == "__main__":
    main()
