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

from caskd.cli import streams
from caskd.cli.arguments import without_local_rank
from caskd.store.errors import CaskdError, UsageError, error_line
from caskd.store.io import escape_control, first_signal, system_failure, tell

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived in a command that has no handler of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


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
    "init": Command(
        "caskd.cli.project:InitConfig",
        "caskd.cli.project:init_command",
        "write a config file and a script of the six commands for one's own data",
    ),
    "plan": Command(
        "caskd.precompute.config:PlanConfig",
        "caskd.precompute.planning:plan_command",
        "tokenise a corpus, lay out its store and forecast the capture",
    ),
    "precompute": Command(
        "caskd.precompute.command_config:PrecomputeCommand",
        "caskd.cli.precompute_command:precompute_command",
        "run the teacher over a corpus and write its outputs to a store",
    ),
    "rollout": Command(
        "caskd.precompute.rollout_config:RolloutConfig",
        "caskd.precompute.responses:rollout_command",
        "write answers with a large model, filtered by a small one, as its training data",
    ),
    "import": Command(
        "caskd.precompute.import_config:ImportConfig",
        "caskd.precompute.imports:import_command",
        "make a store of rows that another program captured",
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
    "store audit": Command(
        "caskd.eval.config:StoreAuditConfig",
        "caskd.eval.next_token:store_audit_command",
        "show how far a store's texts are from a student",
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
    "store export": Command(
        "caskd.cli.share_commands:ExportStoreConfig",
        "caskd.cli.share_commands:export_store_command",
        "write a store in another program's format: DistillKit, axolotl, Parquet",
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
    "status": Command(
        "caskd.train.status:StatusConfig",
        "caskd.train.status:status_command",
        "show how far a training run is; --watch follows it",
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
    "router fit": Command(
        "caskd.eval.config:RouterFitConfig",
        "caskd.eval.next_token:router_fit_command",
        "fit a router of tokens for a student, from a store",
    ),
    "completion": Command(
        "caskd.cli.help:CompletionConfig",
        "caskd.cli.help:completion_command",
        "print a script that completes commands and flags in bash, zsh or fish",
    ),
    "doctor": Command(
        "caskd.cli.doctor:DoctorConfig",
        "caskd.cli.doctor:doctor",
        "check packages, devices and host, and print how to fix problems",
    ),
}

_HELP_PAGE = "caskd.cli.help:help_page"
_PURPOSES = "caskd.cli.help:purposes"
_GROUPS = ("store", "router")
"""Words before the names of several commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `caskd` command line.

    Args:
        argv: the arguments after `caskd`; by default those of the process.

    Returns:
        The exit code: 0 ok, 1 a check failed, 2 usage, 3 an identity mismatch; 128 + the number of
        a signal that stopped the command.

    Raises:
        SystemExit: a subcommand's `--help` (0).
    """
    streams.open_missing()
    logging.setLogRecordFactory(_SafeRecord)
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    if not sys.stderr.isatty():
        # Progress bars of loading weights are noise in a log.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        _check_folder()
        with first_signal([signal.SIGTERM, signal.SIGHUP], _terminate):
            code = _dispatch(words)
    except SystemExit as stopped:
        raise SystemExit(streams.flushed(int(stopped.code or 0))) from None
    except (Exception, KeyboardInterrupt, _Terminated) as error:
        code = _code_of(error)
    return streams.flushed(code)


def _code_of(error: BaseException) -> int:
    """Print the line of an error that ended a command; return the exit code.

    Raises:
        Exception: `error` itself, if it is none of the system's failures.
    """
    code, line = 0, str(error)
    if isinstance(error, CaskdError):
        code, line = error.exit_code, error_line(error)
    elif isinstance(error, KeyboardInterrupt):
        code, line = INTERRUPTED, "interrupted"
    elif isinstance(error, _Terminated):
        code = 128 + error.number
        name = signal.Signals(error.number).name
        line = f"stopped by {name} before it finished; run it again"
    else:
        if isinstance(error, OSError):
            code = streams.output_failure("\n" if error.filename is None else "")
            if code:
                return code
        known = system_failure(error)
        if known is None:
            raise error
        code, line = known.exit_code, error_line(known)
    streams.complain(escape_control(f"caskd: {line}"))
    return code


def _check_folder() -> None:
    """Check that the working directory exists.

    Raises:
        UsageError: it was removed.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the working directory: {error.strerror}; expected an existing one; run cd with a "
            "folder that exists, then the same command"
        ) from None


class _SafeRecord(logging.LogRecord):
    """A message of a library, such as a model's type in a warning of transformers, escaped."""

    def getMessage(self) -> str:
        return "\n".join(map(escape_control, super().getMessage().split("\n")))


def _terminate(number: int) -> None:
    """End the command as an error would, so that it removes what it wrote halfway.

    Raises:
        _Terminated: always.
    """
    raise _Terminated(number)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        tell(overview(COMMANDS))
        return 0
    if words[0] in ("-V", "--version"):
        from importlib import metadata

        tell(f"caskd {metadata.version('caskd')}")
        return 0
    if words[0] in _GROUPS and (len(words) == 1 or words[1] in ("-h", "--help")):
        group = f"{words[0]} "
        tell(overview({name: row for name, row in COMMANDS.items() if name.startswith(group)}))
        return 0
    num_words = 2 if words[0] in _GROUPS else 1
    name = " ".join(words[:num_words])
    if name not in COMMANDS:
        raise UsageError(unknown_command(name))
    return run_command(name, words[num_words:])


def run_command(name: str, args: Sequence[str]) -> int:
    """Parse the options of one subcommand and run it; return its exit code."""
    from caskd.cli.config_file import blamed, take_config, with_file
    from caskd.cli.values import HELP_WORDS, parse_config

    command = COMMANDS[name]
    config_class = resolve(command.config)
    description = f"{command.help[0].upper()}{command.help[1:]}."
    if any(word in HELP_WORDS for word in args):
        tell(resolve(_HELP_PAGE)(name, config_class, description))
        raise SystemExit(0)
    words, file = take_config(args)
    words, origin = with_file(file, words, name, config_class, COMMANDS)
    with blamed(origin):
        config = parse_config(config_class, words, f"caskd {name}", description)
        code = resolve(command.function)(config)
    return code if isinstance(code, int) else 0


def resolve(target: str) -> Any:
    """Import the object `module:name`."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def overview(commands: Mapping[str, Command]) -> str:
    """Help text that lists a table of commands by purpose."""
    width = max(len(name) for name in commands)
    lines: list[str] = []
    for purpose, names in resolve(_PURPOSES)(commands).items():
        lines += ["", f"{purpose}:"]
        lines += [f"  {name.ljust(width)}  {commands[name].help}" for name in names]
    return "\n".join(
        [
            "Run the big model once. Train every small model from the cask.",
            "",
            "usage: caskd COMMAND [OPTIONS]      caskd COMMAND --help      caskd --version",
            *lines,
        ]
    )


def unknown_command(name: str) -> str:
    """Error text for an unknown command, with the closest known one."""
    close = get_close_matches(name, [*COMMANDS, *_GROUPS], n=1, cutoff=0.5)
    hint = f"did you mean 'caskd {close[0]}'? " if close else ""
    return f"no command '{name}'; {hint}run 'caskd --help' for the list"
