"""Make a byte-level BPE tokenizer and a randomly initialised Llama.

    python make_models.py TOKENIZER_DATA OUT --hidden-size 96 --layers 2 --seed 0

The large and the small model must share a tokenizer: pass the same TOKENIZER_DATA for both.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

SPECIAL = ["<pad>", "<bos>", "<eos>"]
WORDS = r" ?[\p{L}_/]+| ?\p{N}| ?[^\s\p{L}\p{N}_/]+|\s+"
"""Tokens never cross these borders: labels and actions are words, digits are single."""


def train_tokenizer(data: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn merges from the prompts and responses, or from the texts, of a JSON lines file."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    records = map(json.loads, data.read_text(encoding="utf-8").splitlines())
    texts = (record[key] for record in records for key in ("prompt", "response", "text")
             if key in record)  # fmt: skip
    core.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, bos_token=bos, eos_token=eos, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def llama(vocab_size: int, hidden_size: int, layers: int, max_positions: int) -> LlamaConfig:
    """Shape of a small Llama with tied embeddings and heads of 32."""
    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, num_hidden_layers=layers,
        intermediate_size=hidden_size * 8 // 3 // 16 * 16, num_attention_heads=hidden_size // 32,
        max_position_embeddings=max_positions, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tokenizer_data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--hidden-size", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--max-positions", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    disable_progress_bar()
    tokenizer = train_tokenizer(args.tokenizer_data, args.vocab_size)
    torch.manual_seed(args.seed)
    shape = llama(len(tokenizer), args.hidden_size, args.layers, args.max_positions)
    model = LlamaForCausalLM(shape)
    staged = args.out.with_suffix(".part")  # the rename is atomic: no incomplete folder
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    staged.rename(args.out)
    print(f"{args.out}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


if __name__ == "__main__":
    main()
