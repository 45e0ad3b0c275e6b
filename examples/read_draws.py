"""Read a sampled store with numpy alone, and compare samples with exact probabilities.

    python examples/read_draws.py STORE

Write STORE with caskd precompute --sample N. A target is counts / N, without a tail.
"""

import sys

import numpy as np

from caskd.store import TeacherStore


def main(url: str) -> None:
    """Print the fraction of samples that equal the label, and the teacher's exact probability."""
    store = TeacherStore.open(url)
    if store.spec.kind != "sampled":
        raise SystemExit(f"{url} is a {store.spec.kind} store; expected a sampled store")
    batch = store.read(range(len(store)))
    known = batch.num_kept > 0  # 0: the row has no samples
    share = batch.sampled_counts[known] / store.spec.num_samples  # [N, k], padding is 0
    on_label = (share * (batch.sampled_ids[known] == batch.labels[known, None])).sum(axis=1)
    exact = np.exp(batch.label_logit[known] - batch.logsumexp[known])
    print(f"{known.sum():,} rows of {store.spec.kept}, {batch.num_kept[known].mean():.1f} ids each")
    print(f"mean probability of the label: {on_label.mean():.4f} sampled, {exact.mean():.4f} exact")


if __name__ == "__main__":
    main(*sys.argv[1:])
