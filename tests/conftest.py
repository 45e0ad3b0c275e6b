"""Settings for every test: offline, one thread, quiet third parties."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import settings

# The same examples each time, and no deadline: it would measure the machine.
settings.register_profile("caskd", deadline=None, derandomize=True)
settings.load_profile("caskd")
# Read when triton is imported, by whatever test comes first. Not from torch: tests of the store
# need none.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config):  # type: ignore[no-untyped-def]
    """Turn off warnings of named third parties that a test cannot fix."""
    for ignored in (
        "ignore:Numcodecs codecs are not in the Zarr version 3 specification",
        "ignore::DeprecationWarning:deepspeed",
        "ignore::FutureWarning:deepspeed",
        "ignore::UserWarning:deepspeed",
        "ignore::DeprecationWarning:torch",
        "ignore::FutureWarning:torch",
        "ignore::UserWarning:torch",
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # peft asks for it
    ):
        config.addinivalue_line("filterwarnings", ignored)


@pytest.fixture
def without_figures() -> Iterator[None]:
    """Reports with empty figures; test_report.py and test_router_figures.py look at drawn ones."""
    from helpers.figures import blank_figures

    with blank_figures():
        yield
