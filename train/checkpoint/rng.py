"""Save and restore the random state of one rank: torch, CUDA, numpy and Python."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed every generator that a student may use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # and CUDA


def repeat_bit_for_bit() -> None:
    """Make torch use deterministic kernels only, and fail where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def save_rng(path: Path) -> None:
    """Write the state of every generator, without pickle."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, python_gauss = random.getstate()
    assert version == 3
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0)
    arrays: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy(),
        "cuda": cuda.numpy().astype(np.uint8),
        "numpy": np.asarray(keys, np.uint32),
        "numpy_tail": np.array([position, has_gauss, gauss], np.float64),
        "python": np.array(words, np.uint64),
        "python_gauss": np.array([np.nan if python_gauss is None else python_gauss]),
    }
    np.savez(path, **arrays)


def load_rng(path: Path) -> None:
    """Restore the state of every generator that `save_rng` wrote."""
    with np.load(path, allow_pickle=False) as saved:
        torch.set_rng_state(torch.from_numpy(saved["torch"]))
        if len(saved["cuda"]) and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.from_numpy(saved["cuda"]))
        position, has_gauss, gauss = saved["numpy_tail"].tolist()
        np.random.set_state(("MT19937", saved["numpy"], int(position), int(has_gauss), gauss))
        python_gauss = float(saved["python_gauss"][0])
        words = tuple(int(word) for word in saved["python"])
        random.setstate((3, words, None if np.isnan(python_gauss) else python_gauss))
