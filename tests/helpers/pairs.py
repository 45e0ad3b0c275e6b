"""Two tiny models that agree on most tokens: the second has the weights of the first plus noise."""

from pathlib import Path

import torch

from helpers.tiny import tiny_model, tiny_tokenizer

NOISE = 0.35


def save_pair(folder: Path, dtype: torch.dtype = torch.float64) -> tuple[Path, Path]:
    """Write a small and a large model of one vocabulary as transformers directories."""
    paths = []
    for name, noise in (("small", 0.0), ("large", NOISE)):
        tokenizer = tiny_tokenizer()
        model = tiny_model(tokenizer, seed=4, tie=False, scale=12.0).to(dtype)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in model.parameters():
                drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                weight.add_((noise * float(weight.float().std()) * drawn).to(dtype))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        paths.append(folder / name)
    return paths[0], paths[1]
