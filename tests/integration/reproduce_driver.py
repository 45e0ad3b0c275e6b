"""The reproduction at the smallest size: reproduce_driver.py WORK SOURCES; called by its test."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "reproduce_cat"))

from jobs import Recipe
from lanes import Lanes
from reproduce import carry_out
from scales import SCALES, Steps

TINY = replace(
    SCALES["cpu"],
    pools=MappingProxyType(
        {"text": Steps(teacher=2, pretrain=2, arm=2, batch=4, secondary_seeds=1)}
    ),
    teacher_shape=(64, 1),
    student_shape=(32, 1),
)


def main() -> None:
    """As reproduce.py does, with a scale of its own."""
    work, sources = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    os.chdir(work)
    sys.exit(carry_out(Recipe(sources, TINY), Lanes(2, 1)))


if __name__ == "__main__":
    main()
