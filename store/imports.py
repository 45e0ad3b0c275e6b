"""Imports on first use: lazy front doors, and packages of extras.

A flag's help or a store's metadata must not cost the import of torch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from caskd.store.errors import UsageError


def lazy_exports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports each of its names when it is first used.

    Args:
        package: the package's `__name__`.
        homes: the module below the package that defines each name, such as `{"train": "run"}`.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find


def require(package: str, *, extra: str, needed_by: str) -> ModuleType:
    """Import a package that an extra of caskd installs.

    Args:
        package: the module to import, such as `peft`.
        extra: the extra of caskd that brings it, such as `lora`.
        needed_by: the flag, URL or value that asks for it, such as `--lora-rank`.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        raise UsageError(f"{needed_by} needs {name}; run pip install 'caskd[{extra}]'") from None
