"""Train an arm whose row weights are a rule of `arms.py`, or its control; record the weights.

    python train_arm.py --rule soft --record SOFT.npz OPTIONS OF caskd train
    python train_arm.py --rule soft --shuffled SOFT.npz --record CONTROL.npz OPTIONS OF caskd train

The control has, in every step, the recorded weights of that step in a random order. Both train on
one rank, and from the first step on: an interrupted run starts anew.
"""

import argparse
import shutil
import sys
from collections import deque
from pathlib import Path

import numpy as np
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from arms import RULES, Rule, Values

from caskd.store import StoreBatch
from caskd.train import TrainConfig, train
from caskd.train.data import RowWeights, WeighedRows


class Recorded:
    """A rule that records its weights, in the order of the rows."""

    def __init__(self, rule: RowWeights) -> None:
        self._rule = rule
        self.name, self.fields, self.needs_student = rule.name, rule.fields, rule.needs_student
        self._steps: deque[int] = deque()  # of micro-batches that were read, and not yet weighed
        self._found: dict[int, list[Values]] = {}

    def values(self, step: int, batch: StoreBatch) -> Values:
        """As the rule's."""
        self._steps.append(step)
        return self._rule.values(step, batch)

    def weights(self, rows: WeighedRows, right: Tensor | None) -> Tensor:
        """As the rule's."""
        weights = self._rule.weights(rows, right)
        own = self._found.setdefault(self._steps.popleft(), [])
        own.append(weights.float().cpu().numpy())
        return weights

    def save(self, path: Path) -> None:
        """Write the weights of all steps, one behind another, and the number of rows of each."""
        steps = [np.concatenate(self._found[step]) for step in sorted(self._found)]
        staged = path.with_suffix(".part.npz")
        np.savez(staged, weights=np.concatenate(steps), sizes=[len(own) for own in steps])
        staged.rename(path)


class Shuffled:
    """The control of a rule: its recorded weights of each step, in a random order.

    The order depends on the seed and the step alone.
    """

    fields, needs_student = (), False

    def __init__(self, rule: Rule, recorded: Path, seed: int) -> None:
        self.name = f"{rule.name}, shuffled"
        with np.load(recorded) as file:
            self._steps = np.split(file["weights"], np.cumsum(file["sizes"])[:-1])
        self._seed, self._step, self._left = seed, -1, np.zeros(0, np.float32)

    def values(self, step: int, batch: StoreBatch) -> Values:
        """The next weights [N] of the step's order."""
        if step != self._step:
            assert not len(self._left), "the step before had more rows"
            order = np.random.default_rng([self._seed, step]).permutation(len(self._steps[step]))
            self._step, self._left = step, self._steps[step][order]
        own, self._left = np.split(self._left, [batch.num_rows])
        assert len(own) == batch.num_rows, "the recorded step has fewer rows"
        return own

    def weights(self, rows: WeighedRows, right: Tensor | None) -> Tensor:
        """The values themselves."""
        return rows.values


def main() -> None:
    """Read the command line, train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--rule", choices=tuple(RULES), required=True)
    parser.add_argument("--shuffled", type=Path, help="recorded weights of the arm")
    parser.add_argument("--record", type=Path, required=True, help="file for the weights")
    args, rest = parser.parse_known_args()
    config = tyro.cli(TrainConfig, args=[word for word in rest if word != "--resume"])
    rule: RowWeights = RULES[args.rule]
    if args.shuffled is not None:
        rule = Shuffled(RULES[args.rule], args.shuffled, config.seed)
    shutil.rmtree(config.out, ignore_errors=True)
    recorded = Recorded(rule)
    train(config, recorded)
    recorded.save(args.record)
    weights = np.load(args.record)["weights"]
    print(f"{args.record}: {len(weights):,} rows, mean weight {weights.mean():.4f}")


if __name__ == "__main__":
    main()
