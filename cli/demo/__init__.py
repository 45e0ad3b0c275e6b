"""`caskd demo`: the whole chain on embedded tasks."""

from caskd.cli.demo.runner import DemoConfig, demo

__all__ = [
    "DemoConfig",
    "demo",
]
