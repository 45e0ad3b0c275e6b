"""Tiny real models and data for tests, built in code: nothing is downloaded, nothing is mocked."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers import decoders as tokenizer_decoders
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.records import write_jsonl as write_jsonl

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .,:+-=?>\n"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def tiny_tokenizer(alphabet: str = ALPHABET) -> PreTrainedTokenizerFast:
    """A character-level tokenizer with pad, bos, eos and unk; it adds no bos by itself."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(".|\n"), behavior="isolated")
    backend.decoder = tokenizer_decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    layers: int = 2,
    hidden: int = 32,
    seed: int = 0,
    vocab_size: int | None = None,
    tie: bool = True,
    scale: float = 4.0,
) -> LlamaForCausalLM:
    """A random Llama in float32; `scale` sharpens its logits so that argmaxes are not ties."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tie,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model


def save_tiny(directory: Path, *, seed: int = 0, **model_options: Any) -> Path:
    """Write a tiny model with its tokenizer as a transformers directory."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, seed=seed, **model_options).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def ragged_records(num: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompt/response records of unequal lengths over the tiny alphabet."""
    generator = torch.Generator().manual_seed(seed)

    def word(longest: int) -> str:
        length = int(torch.randint(1, longest, (1,), generator=generator))
        picks = torch.randint(0, 26, (length,), generator=generator)
        return "".join(ALPHABET[int(i)] for i in picks)

    return [{"prompt": word(20), "response": word(24), "task": f"t{i % 3}"} for i in range(num)]
