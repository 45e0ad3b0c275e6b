"""Help of the subcommands: flags by purpose, examples, and completion for shells."""

from caskd.cli.help.completion import CompletionConfig, completion_command
from caskd.cli.help.page import examples_of, help_page, purposes

__all__ = [
    "CompletionConfig",
    "completion_command",
    "examples_of",
    "help_page",
    "purposes",
]
