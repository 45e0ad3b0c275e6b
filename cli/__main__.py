"""`python -m caskd.cli`, for launchers that run a module: `torchrun -m caskd.cli train ...`."""

import sys

from caskd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
