"""`caskd precompute`: a capture, or with `--sample-responses` a corpus of the teacher's answers."""

from caskd.precompute.command_config import PrecomputeCommand
from caskd.store.errors import UsageError, given_without


def precompute_command(config: PrecomputeCommand) -> None:
    """Run `caskd precompute`.

    Raises:
        UsageError: a flag is missing, or has no meaning for what was asked.
    """
    if config.sample_responses is not None:
        from caskd.precompute.responses import sample_responses

        sample_responses(config, config.sample_responses)
        return
    only_answers = {
        "--temperature": config.temperature is not None,
        "--seed": config.seed is not None,
        "--max-new-tokens": config.max_new_tokens is not None,
        "--api": config.api != "completions",
    }
    for flag, given in only_answers.items():
        if given:
            raise UsageError(given_without(flag, "--sample-responses FILE.jsonl"))
    for flag, value in (("--teacher", config.teacher), ("--store", config.store)):
        if not value:
            raise UsageError(
                f"{flag}: missing; expected by caskd precompute; add a value, or run caskd "
                "precompute --help"
            )
    from caskd.precompute import precompute

    precompute(config)
