"""Help of the subcommands: flags by purpose, examples, and completion for shells."""

from caskd.cli.help.completion import CompletionConfig, completion_command
from caskd.cli.help.fields import Option, options_of
from caskd.cli.help.page import examples_of, help_page, purposes, sections

__all__ = [
    "CompletionConfig",
    "Option",
    "completion_command",
    "examples_of",
    "help_page",
    "options_of",
    "purposes",
    "sections",
]
