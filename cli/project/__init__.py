"""`caskd init`: a folder with a config file and a script for one's own data and models."""

from caskd.cli.project.init_command import InitConfig, init_command

__all__ = [
    "InitConfig",
    "init_command",
]
