"""Fit a router of tokens, and choose its threshold (R2R, arXiv 2505.21600).

Legend: N rows, F rows of the fit.
"""

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from caskd.eval.next_token.router_rows import RouterRows
from caskd.models import fixed_kernels
from caskd.models.decoding import RouterNetwork
from caskd.store.io import progress

FloatArray = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]

_MAX_EPOCHS = 50
_EPOCHS_BETWEEN_VALIDATIONS = 2
_PATIENCE = 10
"""Epochs without a better loss on the validation split after which the fit ends."""
_MOST_IN_BATCH, _LEAST_IN_BATCH = 1024, 32
_LEAST_STEPS = 16
"""Optimizer steps of an epoch, if a batch can be small enough."""
_LEARNING_RATE, _OF_WIDTH = 5e-5, 1024
_WEIGHT_DECAY = 5e-4
_THRESHOLDS = np.linspace(0.01, 0.99, 100)


def fit_network(
    rows: RouterRows, labels: FloatArray, fit: Rows, validation: Rows, seed: int
) -> tuple[RouterNetwork, int]:
    """Train on some rows until the loss on others no longer falls; the best weights, and epochs.

    Binary cross-entropy, positive rows weighted by the share of negative over positive rows. The
    learning rate is that of R2R for its width, and grows as the width falls. On one kind of machine
    and number of threads the weights are the same bit for bit.

    Args:
        rows: inputs.
        labels: [N] 1.0 or 0.0, both among the rows of the fit.
        fit: bool [N].
        validation: bool [N].
        seed: of weights, order and dropout.
    """
    device = next(rows.reader.embedding.parameters()).device
    target = torch.from_numpy(labels).float()
    own = torch.from_numpy(np.flatnonzero(fit))
    positive = target[own].sum()
    loss_of = nn.BCEWithLogitsLoss(pos_weight=((len(own) - positive) / positive).to(device))
    size = max(_LEAST_IN_BATCH, min(_MOST_IN_BATCH, len(own) // _LEAST_STEPS))
    with torch.random.fork_rng(), fixed_kernels(True):
        torch.manual_seed(seed)
        network = RouterNetwork(rows.reader.sizes)
        _start(network)
        network.to(device)
        rate = _LEARNING_RATE * _OF_WIDTH / rows.reader.sizes.width
        optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=_WEIGHT_DECAY)
        order = torch.Generator().manual_seed(seed)
        best, best_loss, best_epoch = copy.deepcopy(network), float("inf"), 0
        with progress("router", _MAX_EPOCHS, "epochs") as shown:
            for epoch in range(1, _MAX_EPOCHS + 1):
                network.train()
                for chosen in _pieces(own[torch.randperm(len(own), generator=order)], size):
                    loss = loss_of(_logits(network, rows, chosen), target[chosen].to(device))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                shown.advance(1)
                if epoch % _EPOCHS_BETWEEN_VALIDATIONS:
                    continue
                found = _validation_loss(network, rows, target, validation, loss_of)
                if found < best_loss:
                    best, best_loss, best_epoch = copy.deepcopy(network), found, epoch
                elif epoch - best_epoch >= _PATIENCE:
                    break
    return best.eval().requires_grad_(False), best_epoch


def _start(network: nn.Module) -> None:
    """Kaiming's initial weights, and no bias."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)


def _pieces(indices: Tensor, size: int) -> list[Tensor]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _logits(network: RouterNetwork, rows: RouterRows, chosen: Tensor) -> Tensor:
    device = next(network.parameters()).device
    with torch.no_grad():
        embedded = rows.reader.embedded(rows.tokens[chosen].to(device))
    found: Tensor = network(rows.hidden[chosen].to(device), rows.top[chosen].to(device), embedded)
    return found


@torch.no_grad()
def _validation_loss(
    network: RouterNetwork, rows: RouterRows, target: Tensor, part: Rows, loss_of: nn.Module
) -> float:
    network.eval()
    chosen = torch.from_numpy(np.flatnonzero(part))
    total = 0.0
    for some in _pieces(chosen, _MOST_IN_BATCH):
        logits = _logits(network, rows, some)
        total += float(loss_of(logits, target[some].to(logits.device))) * len(some)
    return total / len(chosen)


@torch.no_grad()
def probabilities(network: RouterNetwork, rows: RouterRows, part: Rows) -> FloatArray:
    """The router's probability [n] for the rows of a part, bool [N]."""
    chosen = torch.from_numpy(np.flatnonzero(part))
    found = [
        _logits(network, rows, some).sigmoid().double().cpu()
        for some in _pieces(chosen, _MOST_IN_BATCH)
    ]
    return np.asarray(torch.cat(found).numpy())


def recall_threshold(routed: FloatArray, labels: FloatArray, target: float) -> tuple[float, float]:
    """The threshold that sends the fewest rows to the large model at a recall of `target` or more.

    Args:
        routed: [n] probabilities.
        labels: [n] 1.0 or 0.0, with at least one 1.0.
        target: recall to reach.

    Returns:
        The threshold, one of 100 from 0.01 to 0.99, and its recall; if none reaches the target,
        the highest of those with the highest recall.
    """
    sent = routed[:, None] >= _THRESHOLDS
    recall = sent[labels > 0].mean(axis=0)
    enough = recall >= min(target, recall.max())
    best = int(np.flatnonzero(enough)[-1])  # the share sent falls as the threshold rises
    return float(_THRESHOLDS[best]), float(recall[best])
