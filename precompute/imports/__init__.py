"""`caskd import`: rows that other programs captured become a store."""

from caskd.precompute.imports.run import import_command, import_rows

__all__ = ["import_command", "import_rows"]
