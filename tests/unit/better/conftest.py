"""Makes the modules of examples/better_than_cat importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "better_than_cat"))
