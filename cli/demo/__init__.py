"""`caskd demo`: capture, training, prediction and evaluation on embedded tasks."""

from caskd.cli.demo.runner import DemoConfig, demo, run_demo

__all__ = [
    "DemoConfig",
    "demo",
    "run_demo",
]
