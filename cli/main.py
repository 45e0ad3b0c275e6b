"""The `caskd` command: one flat table of subcommands, each imported only when it runs."""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from caskd.cli.arguments import merge_repeated, multi_value_flags, without_local_rank
from caskd.store.errors import CaskdError, UsageError
from caskd.store.io import disk_error, escape_control, first_signal, tell

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
TERMINATED = 143  # 128 + SIGTERM


class _Terminated(BaseException):
    """SIGTERM arrived in a command that has no handler of its own."""


@dataclass(frozen=True)
class Command:
    """A subcommand: its config class and function as `module:name`, and its help text."""

    config: str
    function: str
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "caskd.cli.demo:DemoConfig",
        "caskd.cli.demo:demo",
        "run every step on embedded tasks: CPU, minutes, no download",
    ),
    "plan": Command(
        "caskd.precompute.config:PlanConfig",
        "caskd.precompute.planning:plan_command",
        "tokenise a corpus, lay out its store and forecast the capture",
    ),
    "precompute": Command(
        "caskd.precompute.config:PrecomputeConfig",
        "caskd.precompute:precompute",
        "run the teacher over a corpus and write its outputs to a store",
    ),
    "store info": Command(
        "caskd.cli.store_commands:InfoConfig",
        "caskd.cli.store_commands:info_command",
        "show a store's teacher, rows, fields and sizes",
    ),
    "store show": Command(
        "caskd.cli.store_commands:ShowConfig",
        "caskd.cli.store_commands:show_command",
        "show one example with the teacher's choices for each token",
    ),
    "store verify": Command(
        "caskd.cli.store_commands:VerifyConfig",
        "caskd.cli.store_commands:verify_command",
        "read a store again and check every byte",
    ),
    "store repair": Command(
        "caskd.cli.store_commands:RepairConfig",
        "caskd.cli.store_commands:repair_command",
        "remove the damaged parts of a store, for a capture to redo",
    ),
    "store seal": Command(
        "caskd.cli.store_commands:SealConfig",
        "caskd.cli.store_commands:seal_command",
        "seal a store whose shards are all committed",
    ),
    "store diff": Command(
        "caskd.cli.store_commands:DiffConfig",
        "caskd.cli.store_commands:diff_command",
        "compare the identities and rows of two stores",
    ),
    "store card": Command(
        "caskd.cli.share_commands:CardConfig",
        "caskd.cli.share_commands:card_command",
        "print or write a store's card: contents, origin, teacher quality",
    ),
    "store ls": Command(
        "caskd.cli.share_commands:ListConfig",
        "caskd.cli.share_commands:list_command",
        "list the stores in a directory or at an s3://, gs:// or hf:// URL",
    ),
    "store push": Command(
        "caskd.cli.share_commands:PushConfig",
        "caskd.cli.share_commands:push_command",
        "copy a sealed store to another storage, checked at both ends",
    ),
    "store pull": Command(
        "caskd.cli.share_commands:PullConfig",
        "caskd.cli.share_commands:pull_command",
        "copy a sealed store to a directory, checked at both ends",
    ),
    "train": Command(
        "caskd.train.config:TrainConfig",
        "caskd.train:train",
        "train a student from a store, without the teacher",
    ),
    "export": Command(
        "caskd.train.config:ExportConfig",
        "caskd.train.run:export_command",
        "export a checkpoint as an ordinary transformers model",
    ),
    "predict": Command(
        "caskd.eval.config:PredictConfig",
        "caskd.eval:predict",
        "generate predictions for a test set, with log-probabilities and quality",
    ),
    "eval": Command(
        "caskd.eval.config:EvalConfig",
        "caskd.eval.evaluate:evaluate",
        "measure the cascade: quality against cost at every threshold",
    ),
    "doctor": Command(
        "caskd.cli.doctor:DoctorConfig",
        "caskd.cli.doctor:doctor",
        "check packages, devices and host, and print how to fix problems",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `caskd` command line.

    Args:
        argv: the arguments after `caskd`; by default those of the process.

    Returns:
        The exit code: 0 ok, 1 a check failed, 2 usage, 3 an identity mismatch; 128 + the number of
        a signal that stopped the command.

    Raises:
        SystemExit: a subcommand's `--help` (0) or usage error (2).
    """
    logging.setLogRecordFactory(_SafeRecord)
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    if not sys.stderr.isatty():
        # Progress bars of loading weights are noise in a log.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with first_signal([signal.SIGTERM], _terminate):
            code = _dispatch(words)
            sys.stdout.flush()
    except CaskdError as error:
        tell(escape_control(f"caskd: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        tell("caskd: interrupted", file=sys.stderr)
        return INTERRUPTED
    except _Terminated:
        tell("caskd: stopped by SIGTERM before it finished; run it again", file=sys.stderr)
        return TERMINATED
    except BrokenPipeError:
        # The reader closed the pipe (`| head`); without this Python prints an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        refused = disk_error(error)
        if refused is None:
            raise
        tell(escape_control(f"caskd: {refused}"), file=sys.stderr)
        return refused.exit_code
    return code


class _SafeRecord(logging.LogRecord):
    """A message of a library, such as a model's type in a warning of transformers, escaped."""

    def getMessage(self) -> str:
        return "\n".join(map(escape_control, super().getMessage().split("\n")))


def _terminate(_number: int) -> None:
    """End the command as an error would, so that it removes what it wrote halfway.

    Raises:
        _Terminated: always.
    """
    raise _Terminated


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        tell(overview(COMMANDS))
        return 0
    if words[0] in ("-V", "--version"):
        from importlib import metadata

        tell(f"caskd {metadata.version('caskd')}")
        return 0
    if words[0] == "store" and (len(words) == 1 or words[1] in ("-h", "--help")):
        tell(overview({name: row for name, row in COMMANDS.items() if name.startswith("store ")}))
        return 0
    num_words = 2 if words[0] == "store" else 1
    name = " ".join(words[:num_words])
    if name not in COMMANDS:
        raise UsageError(unknown_command(name))
    return run_command(name, words[num_words:])


def run_command(name: str, args: Sequence[str]) -> int:
    """Parse the options of one subcommand and run it; return its exit code."""
    import tyro

    command = COMMANDS[name]
    config_class = resolve(command.config)
    merged = merge_repeated(args, multi_value_flags(config_class))
    description = f"{command.help[0].upper()}{command.help[1:]}."
    config = tyro.cli(config_class, args=merged, prog=f"caskd {name}", description=description)
    code = resolve(command.function)(config)
    return code if isinstance(code, int) else 0


def resolve(target: str) -> Any:
    """Import the object `module:name`."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def overview(commands: Mapping[str, Command]) -> str:
    """Help text that lists a table of commands."""
    width = max(len(name) for name in commands)
    lines = [f"  {name.ljust(width)}  {command.help}" for name, command in commands.items()]
    return "\n".join(
        [
            "Run the big model once. Train every small model from the cask.",
            "",
            "usage: caskd COMMAND [OPTIONS]      caskd COMMAND --help      caskd --version",
            "",
            *lines,
        ]
    )


def unknown_command(name: str) -> str:
    """Error text for an unknown command, with the closest known one."""
    close = get_close_matches(name, [*COMMANDS, "store"], n=1, cutoff=0.5)
    hint = f"did you mean 'caskd {close[0]}'? " if close else ""
    return f"no command '{name}'; {hint}run 'caskd --help' for the list"
