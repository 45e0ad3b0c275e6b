"""Read a store with numpy alone: how often the teacher is right, task by task.

    python examples/read_store.py caskd-demo/store

Neither torch nor a tokenizer is loaded. For a reader without caskd see docs/store-format.md.
"""

import sys

import numpy as np

from caskd.store import TeacherStore


def main(place: str) -> None:
    """Print, for each task, the teacher's next-token accuracy and its mean loss on the labels."""
    store = TeacherStore.open(place)
    for number, name in enumerate(store.spec.tasks):
        examples = np.flatnonzero(store.index.task == number)
        batch = store.read(examples, fields=("argmax", "label_logit", "logsumexp"))
        accuracy = (batch.argmax == batch.labels).mean()
        nats = (batch.logsumexp - batch.label_logit).mean()
        print(f"{name or '(no task)':12} accuracy {accuracy:.3f}   loss {nats:.3f} nat per token")


if __name__ == "__main__":
    main(*sys.argv[1:])
