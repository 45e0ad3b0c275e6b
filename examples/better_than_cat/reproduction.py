"""Makes the modules of ../reproduce_cat importable: pools, models and commands are the same."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.with_name("reproduce_cat")
if str(FOLDER) not in sys.path:
    sys.path.insert(0, str(FOLDER))
