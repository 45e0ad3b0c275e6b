"""Models of real shapes with random weights, and text for them: nothing is downloaded.

    python benchmarks/gpu_models.py DIR teacher student store           # or --toy, for a CPU

`teacher` has the shape of Llama 3 8B, `student` that of Llama 3.2 1B; neither has weights on disk,
which `random_model` makes where they are used. `store` is captured from a small model that expects
each token once more, on text in which three letters of four repeat the one before: this teacher is
right about three tokens of four, which the mask of cat-dist keeps. All have one vocabulary: the
demo's characters and filler up to V = 128,256.

What is in DIR already is left as it is.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from caskd.cli.demo.demo_models import character_tokenizer
from caskd.models import build_model, open_config, open_tokenizer
from caskd.precompute import PrecomputeConfig, precompute

FREQUENT = " etasonr0i|dhlc.-m,fpuw`1bg+kx3y2v[]5*46897()A_:/C#U;DT%'SE"
"""The characters of this repository's documentation, but for the rarest 3 %."""

REPEATED = 0.75
"""Share of the letters of `store` that repeat the one before."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int = 128_256
    tied: bool = False


SHAPES = {
    "teacher": Shape(4096, 14336, 32, 32, 8),
    "student": Shape(2048, 8192, 16, 32, 8, tied=True),
    "echo": Shape(128, 256, 1, 4, 4, tied=True),
}
TOY_SHAPES = {
    "teacher": Shape(64, 128, 2, 4, 2, vocab=512),
    "student": Shape(32, 64, 2, 4, 2, vocab=512, tied=True),
    "echo": Shape(128, 256, 1, 4, 4, vocab=512, tied=True),
}


def wide_tokenizer(vocab_size: int) -> Any:
    """The demo's tokenizer with filler tokens up to `vocab_size`; no text has them."""
    narrow = character_tokenizer()
    backend = json.loads(narrow.backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"]
    for i in range(len(vocabulary), vocab_size):
        vocabulary[f"<filler {i}>"] = i
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        **{f"{name}_token": narrow.special_tokens_map[f"{name}_token"] for name in _SPECIAL},
    )


_SPECIAL = ("pad", "bos", "eos", "unk")


def write_shape(folder: Path, shape: Shape) -> None:
    """A model without weights: configuration, tokenizer, and a file that holds no tensor."""
    tokenizer = wide_tokenizer(shape.vocab)
    LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=8192,
        tie_word_embeddings=shape.tied, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    save_file({}, folder / "model.safetensors")


def random_model(folder: str | Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    """A model of that shape on a device; 8B weights are there in a second."""
    torch.manual_seed(0)
    config = open_config(folder, "--teacher-dir")
    return build_model(config, "--teacher-dir", dtype=dtype, device=str(device))


def accept_shapes() -> None:
    """Let this process plan with models without weights, which caskd refuses at the door."""
    for door in ("caskd.precompute.checkpoints.source", "caskd.train.model.student"):
        mock.patch(f"{door}.open_empty", _empty).start()


def _empty(source: str | Path, flag: str, **_: object) -> Any:
    return build_model(open_config(source, flag), flag, device="meta")


def random_teacher(folder: str | Path, device: torch.device) -> Any:
    """One in bfloat16 that prefers the characters that text is made of."""
    model = random_model(folder, device, torch.bfloat16).requires_grad_(False).eval()
    tokenizer = open_tokenizer(folder, "--teacher-dir")
    prefer(model, [tokenizer.convert_tokens_to_ids(character) for character in FREQUENT])
    return model


@torch.no_grad()
def make_echo(model: Any) -> None:
    """Layers that add nothing: what is left is the embedding, which is likest to itself."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.get_input_embeddings().weight.mul_(5)  # sharper, as a teacher is


@torch.no_grad()
def prefer(model: Any, ids: list[int]) -> None:
    """Make some tokens the likely ones: a label outside the top-k costs a capture a pass over V.

    Every embedding gets one direction, which small layers leave in the last hidden states; those
    tokens' rows of the head get it, too. Their logits lie seven standard deviations of a random
    head's above the others, of which a hundred thousand reach four.
    """
    width = model.config.hidden_size
    direction = torch.randn(width, device=model.device, dtype=model.dtype)
    model.get_input_embeddings().weight.add_(direction, alpha=0.1)
    for layer in model.model.layers:
        for product in (layer.self_attn.o_proj, layer.mlp.down_proj):
            product.weight.mul_(1e-3)
    spread = model.config.initializer_range * width**0.5
    model.lm_head.weight[ids] += direction * (7 * spread / width)


def write_echo_text(path: Path, num_examples: int, prompt: int, response: int) -> None:
    """JSONL of letters that repeat; lengths are the means, spread by half to either side."""
    source = random.Random(0)

    def letters(mean: int) -> str:
        text = "a"
        for _ in range(round(mean * source.uniform(0.5, 1.5))):
            repeats = source.random() < REPEATED
            text += text[-1] if repeats else source.choice("abcdefghijklmnopqrstuvwxyz")
        return text

    with path.open("w") as file:
        for _ in range(num_examples):
            record = {"prompt": letters(prompt), "response": letters(response)}
            file.write(json.dumps(record) + "\n")


def write_store(folder: Path, *, toy: bool) -> None:
    """The store that students of these shapes learn from."""
    data, echo = folder.with_name("echo.jsonl"), folder.with_name("echo")
    sizes = (24, 8, 24) if toy else (64, 200, 800)
    write_echo_text(data, *sizes)
    write_shape(echo, (TOY_SHAPES if toy else SHAPES)["echo"])
    model = random_model(echo, "cpu", torch.bfloat16)
    make_echo(model)
    model.save_pretrained(echo)
    unfinished = folder.with_name(folder.name + ".unfinished")
    precompute(
        PrecomputeConfig(
            teacher=str(echo), data=(str(data),), store=str(unfinished),
            top_k=64, shard_rows=256 if toy else 16_384,
        )
    )  # fmt: skip
    unfinished.rename(folder)


def make(folder: Path, names: list[str], *, toy: bool) -> None:
    """Whatever of `names` is not in `folder` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = TOY_SHAPES if toy else SHAPES
    for name in names:
        if (folder / name).exists():
            continue
        print(f"making {name} in {folder}", flush=True)
        if name == "store":
            write_store(folder / name, toy=toy)
        else:
            write_shape(folder / name, shapes[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=["teacher", "student", "store"])
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    make(arguments.folder, arguments.names, toy=arguments.toy)


if __name__ == "__main__":
    main()
