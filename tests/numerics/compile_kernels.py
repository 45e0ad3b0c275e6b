"""Compile the kernels for GPUs that need not be present; called by test_losses_kernels.py.

Prints a line per kernel: the GPU's generation, the kernel, its variant, the size of its code.
"""

import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from caskd.precompute.rows import triton_passes
from caskd.train.loss import triton_kernels

OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
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


def compiled_size(kernel: object, types: dict[str, str], constants: dict[str, int], sm: int) -> int:
    """Bytes of machine code of a kernel for GPUs of compute capability sm / 10."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=OPTIONS)
    return len(compiled.asm["cubin"])


def main() -> None:
    for sm, columns in itertools.product((80, 90), (64, 4096)):
        size = compiled_size(triton_kernels._read_row, READ, {"COLUMNS": columns}, sm)
        print(sm, "read", columns, size)
        for operand, capped in itertools.product(("bf16", "fp32"), (False, True)):
            types = DIFFERENTIATE | {"gradient": f"*{operand}"}
            constants = {"COLUMNS": columns, "HAS_SOFTCAP": capped}
            size = compiled_size(triton_kernels._differentiate_row, types, constants, sm)
            print(sm, f"differentiate {operand} {capped}", columns, size)
    for sm, (kernel, types, constants) in itertools.product(
        (80, 90),
        (
            (triton_passes._read_maxima, MAXIMA, {"BLOCKS": 128, "WIDTH": 32}),
            (triton_passes._read_rest, REST, {"COLUMNS": 4096}),
        ),
    ):
        print(sm, "capture", *constants.values(), compiled_size(kernel, types, constants, sm))


if __name__ == "__main__":
    main()
