"""The `caskd` command: one flat table of subcommands, each imported only when it is chosen."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module, metadata
from typing import Any

from caskd.cli.arguments import merge_repeated, multi_value_flags, without_local_rank
from caskd.store.errors import CaskdError, UsageError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE


@dataclass(frozen=True)
class Command:
    """A subcommand: the places (`module:name`) of its options and its function, and its help."""

    config: str
    function: str
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "caskd.cli.demo:DemoConfig",
        "caskd.cli.demo:demo",
        "the whole story on embedded tasks: CPU, minutes, nothing to download",
    ),
    "plan": Command(
        "caskd.precompute.config:PlanConfig",
        "caskd.precompute.planning:plan_command",
        "tokenise a corpus and lay out a store; say what its capture will take",
    ),
    "precompute": Command(
        "caskd.precompute.config:PrecomputeConfig",
        "caskd.precompute:precompute",
        "run the teacher over a corpus and write its answers to a store",
    ),
    "store info": Command(
        "caskd.cli.store_commands:InfoConfig",
        "caskd.cli.store_commands:info_command",
        "what a store holds: teacher, rows, fields, bytes",
    ),
    "store show": Command(
        "caskd.cli.store_commands:ShowConfig",
        "caskd.cli.store_commands:show_command",
        "one example: its tokens and the teacher's choices for each",
    ),
    "store verify": Command(
        "caskd.cli.store_commands:VerifyConfig",
        "caskd.cli.store_commands:verify_command",
        "re-read every byte of a store and check it",
    ),
    "store repair": Command(
        "caskd.cli.store_commands:RepairConfig",
        "caskd.cli.store_commands:repair_command",
        "take out what does not verify, for the capture to put back",
    ),
    "store seal": Command(
        "caskd.cli.store_commands:SealConfig",
        "caskd.cli.store_commands:seal_command",
        "seal a store whose shards are all committed",
    ),
    "store diff": Command(
        "caskd.cli.store_commands:DiffConfig",
        "caskd.cli.store_commands:diff_command",
        "in which identity fields and rows two stores differ",
    ),
    "store card": Command(
        "caskd.cli.share_commands:CardConfig",
        "caskd.cli.share_commands:card_command",
        "what a store is, how it was made, how good it is, for people",
    ),
    "store ls": Command(
        "caskd.cli.share_commands:ListConfig",
        "caskd.cli.share_commands:list_command",
        "the stores at a place: a directory, s3://, gs://, hf://",
    ),
    "store push": Command(
        "caskd.cli.share_commands:PushConfig",
        "caskd.cli.share_commands:push_command",
        "copy a sealed store to a place, checked at both ends",
    ),
    "store pull": Command(
        "caskd.cli.share_commands:PullConfig",
        "caskd.cli.share_commands:pull_command",
        "copy a sealed store from a place, checked as it comes",
    ),
    "train": Command(
        "caskd.train.config:TrainConfig",
        "caskd.train:train",
        "train a student from a store, without the teacher",
    ),
    "export": Command(
        "caskd.train.config:ExportConfig",
        "caskd.train.run:export_command",
        "write a checkpoint as an ordinary transformers model",
    ),
    "predict": Command(
        "caskd.eval.config:PredictConfig",
        "caskd.eval:predict",
        "let a model answer a test set; keep answers, log-probabilities, quality",
    ),
    "eval": Command(
        "caskd.eval.config:EvalConfig",
        "caskd.eval.evaluate:evaluate",
        "measure the cascade: quality against cost over every threshold",
    ),
    "doctor": Command(
        "caskd.cli.doctor:DoctorConfig",
        "caskd.cli.doctor:doctor",
        "what is installed, which device, what would fail, and the fix",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `caskd` command line.

    Args:
        argv: the words after `caskd`; those of the process when not given.

    Returns:
        The exit code: 0 ok, 1 a check failed, 2 usage, 3 an identity mismatch.

    Raises:
        SystemExit: from a subcommand's own `--help` (0) or usage error (2).
    """
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    if not sys.stderr.isatty():
        # Bars of weights being loaded are noise in a log, where nobody sees them move.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except CaskdError as error:
        print(f"caskd: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("caskd: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe left (`| head`); without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(COMMANDS))
        return 0
    if words[0] in ("-V", "--version"):
        print(f"caskd {metadata.version('caskd')}")
        return 0
    if words[0] == "store" and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(overview({name: row for name, row in COMMANDS.items() if name.startswith("store ")}))
        return 0
    num_words = 2 if words[0] == "store" else 1
    name = " ".join(words[:num_words])
    if name not in COMMANDS:
        raise UsageError(unknown_command(name))
    return run_command(name, words[num_words:])


def run_command(name: str, args: Sequence[str]) -> int:
    """Parse the options of one subcommand and run it; returns its exit code."""
    import tyro

    command = COMMANDS[name]
    config_class = resolve(command.config)
    merged = merge_repeated(args, multi_value_flags(config_class))
    config = tyro.cli(
        config_class, args=merged, prog=f"caskd {name}", description=f"{command.help}."
    )
    code = resolve(command.function)(config)
    return code if isinstance(code, int) else 0


def resolve(place: str) -> Any:
    """Import what `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def overview(commands: Mapping[str, Command]) -> str:
    """The help text over a table of commands."""
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
    """One line: what was typed, what is closest, and how to see the rest."""
    close = get_close_matches(name, [*COMMANDS, "store"], n=1, cutoff=0.5)
    hint = f"did you mean 'caskd {close[0]}'? " if close else ""
    return f"no command '{name}'; {hint}'caskd --help' lists them all"
