"""One model of a cascade in this process: it answers with the settings of its predictions.

Legend: E prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from caskd.store.corpus import ChatOptions, Columns
from caskd.store.errors import UsageError

if TYPE_CHECKING:
    from caskd.models.decoding import Answer, LoadedModel

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or the turns of a chat before the answer."""

MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class MeasuredModel:
    """A model, and how its measured answers were decoded.

    Attributes:
        loaded: the model.
        chat: how conversations are rendered.
        decoding: `max_new_tokens`, `hidden_layer`, `stop`, and `stop_by_task`.
        batch_size: prompts answered at once.
    """

    loaded: "LoadedModel"
    chat: ChatOptions | None
    decoding: Mapping[str, Any]
    batch_size: int

    def answers(
        self, prompts: Sequence[Prompt], tasks: Sequence[str] | None = None
    ) -> "list[Answer]":
        """The answer to each prompt, decoded as `caskd predict` does.

        Args:
            prompts: [E] at least one.
            tasks: [E] task of each prompt; needed where tasks have different stop texts.

        Raises:
            UsageError: a prompt is empty, or its stop texts are not known.
        """
        from caskd.eval.inference import batches
        from caskd.models import check_template
        from caskd.models.decoding import check_stop_texts, decode_batch
        from caskd.store.corpus import prompt_ids

        tokenizer = self.loaded.tokenizer
        stops = stop_texts(self.decoding, len(prompts), tasks)
        check_stop_texts(tokenizer, [text for stop in stops for text in stop])
        own_template = self.chat is None or self.chat.template is None
        if own_template and not all(isinstance(prompt, str) for prompt in prompts):
            check_template(tokenizer, f"model {self.loaded.identity['name']}")
        ids = [prompt_ids(tokenizer, *record_of(prompt), self.chat) for prompt in prompts]
        empty = next((index for index, tokens in enumerate(ids) if not tokens), None)
        if empty is not None:
            raise UsageError(f"prompt {empty}: is empty; expected a question; remove it")
        found: dict[int, Answer] = {}
        for batch in batches([len(tokens) for tokens in ids], self.batch_size):
            part = decode_batch(
                self.loaded,
                [ids[index] for index in batch],
                int(self.decoding.get("max_new_tokens", MAX_NEW_TOKENS)),
                stop=[stops[index] for index in batch],
                hidden_layer=self.decoding.get("hidden_layer"),
            )
            found.update(zip(batch, part, strict=True))
        return [found[index] for index in range(len(ids))]


def stop_texts(
    decoding: Mapping[str, Any], num: int, tasks: Sequence[str] | None
) -> list[list[str]]:
    """The stop texts [E] with which answers to such prompts were measured.

    Raises:
        UsageError: a task is not among the measured ones, or stop texts differ by task and none
            is given.
    """
    by_task: Mapping[str, list[str]] = decoding.get("stop_by_task", {})
    if tasks is None:
        different = {tuple(stop): task for task, stop in by_task.items()}
        if len(different) > 1:
            raise UsageError(
                f"tasks: none were given, and the stop texts of the measured ones differ "
                f"({', '.join(f'{task}: {list(stop)!r}' for stop, task in different.items())}); "
                f"expected the task of each prompt; pass answer(prompts, tasks=[...])"
            )
        stop = list(next(iter(different), decoding.get("stop", ())))
        return [stop] * num
    unknown = next((task for task in tasks if by_task and task not in by_task), None)
    if unknown is not None or len(tasks) != num:
        raise UsageError(
            f"tasks: {len(tasks)} for {num} prompts"
            + ("" if unknown is None else f", with {unknown!r}")
            + f"; expected one of {', '.join(sorted(by_task)) or 'any name'} for each prompt; pass "
            "the names with which the cascade was measured"
        )
    return [list(by_task.get(task, decoding.get("stop", ()))) for task in tasks]


def record_of(prompt: Prompt) -> tuple[dict[str, Any], Columns]:
    """A prompt as a record of `caskd predict`, with a placeholder answer."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "response": ""}, Columns(kind="prompt")
    reply = {"role": "assistant", "content": "-"}
    return {"messages": [*map(dict, prompt), reply]}, Columns(kind="messages")
