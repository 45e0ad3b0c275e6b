"""`hf://datasets/USER/NAME[@REVISION]/PATH`: one file of a data set, through the Hub's cache."""

import re

from caskd.store.errors import UsageError

SCHEME = "hf://"
_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?/((?:[\w.=+-]+/)*[\w.=+-]+)")


def local_copy(url: str) -> str:
    """The file on this machine, fetched unless the Hub's cache has it.

    Raises:
        UsageError: not such a URL, no such file, or no connection.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise UsageError(
            f"data file {url!r} is no file of a data set; expected "
            "hf://datasets/USER/NAME/PATH, such as .../data/train-00000-of-00001.parquet"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, revision, path = match.groups()
    try:
        return hf_hub_download(repository, path, repo_type="dataset", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"no data file {url!r}: the Hub gave {type(error).__name__}; expected a file that is "
            "there: check --data, the connection, and HF_TOKEN for a private data set"
        ) from error
