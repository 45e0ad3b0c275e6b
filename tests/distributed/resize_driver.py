"""Train several runs with one launch of the ranks; called by test_resize.py.

    resize_driver.py ROOT RUN...

A RUN is NAME:ZERO_STAGE:DTYPE; it is resumed where ROOT/NAME has a checkpoint.
"""

import sys
from pathlib import Path

from caskd.train.checkpoint import CHECKPOINTS
from caskd.train.engine import init_distributed
from caskd.train.run.loop import _fit, start_engine
from caskd.train.run.plan import plan_run
from caskd.train.run.run_log import describe_run

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.training import config_for

STEPS, SAVED = 16, 6


def main() -> None:
    root, runs = Path(sys.argv[1]), sys.argv[2:]
    with init_distributed() as ranks:
        for run in runs:
            name, stage, dtype = run.split(":")
            config = config_for(
                root,
                out=name,
                zero_stage=int(stage),
                dtype=dtype,
                micro_batch_size=2,
                steps=STEPS,
                save_every=SAVED,
                keep_checkpoints=3,
                weight_decay=0.1,
                objective="cat-dist",
                resume=(root / name / CHECKPOINTS).exists(),
            )
            plan = plan_run(config)
            if ranks.rank == 0:
                describe_run(plan, ranks)
            engine = start_engine(plan, ranks)
            _fit(plan, engine, [])
            engine.close()


if __name__ == "__main__":
    main()
