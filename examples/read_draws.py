"""Read a sampled store with numpy alone: how sure the teacher is, as its draws tell.

    python examples/read_draws.py STORE

STORE was written by caskd precompute --sample N. A target is counts / N, without a tail.
"""

import sys

import numpy as np

from caskd.store import TeacherStore


def main(place: str) -> None:
    """Print the share of draws that fell on the label, against the teacher's own probability."""
    store = TeacherStore.open(place)
    if store.spec.kind != "sampled":
        raise SystemExit(f"{place}: a {store.spec.kind} store; see examples/read_store.py")
    batch = store.read(range(len(store)))
    known = batch.num_kept > 0  # rows without a teacher have none
    share = batch.sampled_counts[known] / store.spec.num_samples  # [N, k], padding is 0
    on_label = (share * (batch.sampled_ids[known] == batch.labels[known, None])).sum(axis=1)
    exact = np.exp(batch.label_logit[known] - batch.logsumexp[known])
    print(f"{known.sum():,} rows of {store.spec.kept}, {batch.num_kept[known].mean():.1f} ids each")
    print(f"mean probability of the label: {on_label.mean():.4f} drawn, {exact.mean():.4f} exact")


if __name__ == "__main__":
    main(*sys.argv[1:])
