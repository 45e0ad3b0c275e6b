"""Imports on first use: lazy front doors, and packages of optional extras.

Printing help or a store's metadata must not import torch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from caskd.store.errors import UsageError


def lazy_exports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` that imports each name on first use.

    Args:
        package: the package's `__name__`.
        homes: name -> module below the package that defines it, such as `{"train": "run"}`.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find


def require(package: str, *, extra: str, needed_by: str) -> ModuleType:
    """Import a package of an optional extra of caskd.

    Args:
        package: the module to import, such as `peft`.
        extra: the extra that installs it, such as `lora`.
        needed_by: the flag, URL or value that needs it, such as `--lora-rank`.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        raise UsageError(f"{needed_by} needs {name}; run pip install 'caskd[{extra}]'") from None
