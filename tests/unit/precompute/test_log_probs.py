"""Row fields from log-probabilities, by hand."""

import numpy as np

from caskd.precompute.rows import log_prob_fields
from caskd.precompute.rows.log_probs import log_prob_counts

P = np.array([[0.5, 0.25, 0.125], [0.4, 0.3, 0.3], [0.75, 0.0, 0.0]])
IDS = np.array([[4, 2, 9], [1, 3, 5], [6, 7, 8]])


def fields(min_mass: float = 1.0) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore"):
        logprobs = np.log(P).astype(np.float32)
    label = np.array([logprobs[0, 1], -6.0, -9999.0], np.float32)
    return log_prob_fields(IDS, logprobs, label, np.array([1, 3, 3]), min_mass)


def test_rows() -> None:
    rows = fields()
    assert rows["num_kept"].tolist() == [3, 3, 1]
    np.testing.assert_allclose(rows["tail_mass"], [0.125, 0, 0.25], atol=1e-7)
    assert rows["argmax"].tolist() == [4, 1, 6]
    assert rows["label_rank"].tolist() == [1, 3, 3]
    assert not rows["logsumexp"].any()
    assert rows["topk_ids"].tolist() == [[4, 2, 9], [1, 3, 5], [6, 0, 0]]
    assert np.isneginf(rows["topk_logits"][2, 1:]).all()
    assert (rows["tail_mass"] >= 0).all()


def test_the_shortest_prefix_that_reaches_the_mass() -> None:
    rows = fields(0.69)
    assert rows["num_kept"].tolist() == [2, 2, 1]
    np.testing.assert_allclose(rows["tail_mass"], [0.25, 0.3, 0.25], atol=1e-7)
    assert rows["topk_ids"][0].tolist() == [4, 2, 0]


def test_counts() -> None:
    assert log_prob_counts(fields(), 3) == {"tied_rows": 1, "capped_rows": 2, "clamped_rows": 1}
    assert log_prob_counts(fields(0.69), 3)["tied_rows"] == 0
