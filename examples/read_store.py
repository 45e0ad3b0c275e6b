"""Read a store with numpy alone, and print the teacher's accuracy by task.

    python examples/read_store.py caskd-demo/store

This loads neither torch nor a tokenizer. docs/store-format.md has a reader without caskd.
"""

import sys

import numpy as np

from caskd.store import TeacherStore


def main(url: str) -> None:
    """Print the teacher's next-token accuracy and its mean loss on the labels for each task."""
    store = TeacherStore.open(url)
    for number, name in enumerate(store.spec.tasks):
        examples = np.flatnonzero(store.index.task == number)
        batch = store.read(examples, fields=("argmax", "label_logit", "logsumexp"))
        accuracy = (batch.argmax == batch.labels).mean()
        nats = (batch.logsumexp - batch.label_logit).mean()
        print(f"{name or '(no task)':12} accuracy {accuracy:.3f}   loss {nats:.3f} nat per token")


if __name__ == "__main__":
    main(*sys.argv[1:])
