"""Answers of SGLang's /generate in the shape of its documentation and source, and out of shape.

`input_token_logprobs` has an entry `[log-probability, id, text or null]` for each token from
`logprob_start_len` on; the first has null for its value. `input_top_logprobs` has null first, and
then k such entries a token. An id that is the last of the model's columns is written as 0.
"""

import copy
from typing import Any

import pytest

from caskd.models.engines import NonFiniteError, apis
from caskd.models.engines.prompt_rows import ordered_rows
from caskd.store.errors import TeacherError

TOKENS = [5, 6, 3, 9, 4]
FIRST = 2
"""The first token with a row: 3, behind 5 and 6."""
ANSWER: dict[str, Any] = {
    "text": "x",
    "output_ids": [1],
    "meta_info": {
        "id": "0",
        "finish_reason": {"type": "length", "length": 1},
        "prompt_tokens": 5,
        "input_token_logprobs": [
            [None, 6, None],
            [-2.5, 3, None],
            [-1.0, 0, None],
            [-3.0, 4, " d"],
        ],
        "input_top_logprobs": [
            None,
            [[-0.5, 2, None], [-1.5, 1, None]],
            [[-1.0, 9, None], [-1.5, 0, None]],
            [[-0.25, 7, None], [-3.0, 4, " d"]],
        ],
        "output_token_logprobs": [[-0.1, 1, None]],
    },
}


class Server:
    """Gives one answer, and keeps what it was asked."""

    url = "http://host"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def ask(self, path: str, body: Any = None) -> Any:
        assert path == "/generate"
        self.body = body
        return self.answer


def rows_of(answer: Any, num_columns: int = 10) -> Any:
    server = Server(answer)
    cells = apis.SglangApi(server, "0.5", num_columns).cells(TOKENS, FIRST, 2)  # type: ignore[arg-type]
    assert server.body["input_ids"] == TOKENS
    assert server.body["logprob_start_len"] == FIRST - 1
    assert server.body["top_logprobs_num"] == 2
    return ordered_rows(cells, TOKENS[FIRST:], 2, 10, num_columns)


def test_rows_by_hand() -> None:
    found = rows_of(ANSWER)
    assert found.ids.tolist() == [[2, 1], [9, 0], [7, 4]]
    assert found.label_logprobs.tolist() == [-2.5, -1.0, -3.0]
    assert found.label_ranks.tolist() == [2, 0, 1]


def test_a_zero_in_place_of_another_id_is_refused() -> None:
    with pytest.raises(TeacherError, match="other token ids"):
        rows_of(ANSWER, num_columns=11)  # 9 is not the last column of 11


Change = tuple[tuple[Any, ...], Any]
TOKEN, TOP = "input_token_logprobs", "input_top_logprobs"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (((TOKEN, 1, 1), 4), "other token ids"),
        (((TOKEN, 0, 1), 7), "other token ids"),
        (((TOKEN,), ANSWER["meta_info"][TOKEN][1:]), "3 rows; expected 4"),
        (((TOP,), ANSWER["meta_info"][TOP][1:]), "expected 4"),
        (((TOKEN,), []), "0 rows; expected 4"),
        (((TOP, 1), None), "lacks a field or has another shape"),
        (((TOP, 1), [[-0.5, 2, None]]), "1 most likely tokens; expected 2"),
        (((TOP, 2), [[-1.0, 9, None]]), "1 most likely tokens; expected 2"),
        (((TOP, 1, 0), [-0.5, None, None]), "lacks a field or has another shape"),
        (((TOP, 3, 1, 0), -2.0), "two values|-3.0 and -2.0"),
        (((TOP,), None), "lacks a field or has another shape"),
    ],
)
def test_another_shape_is_refused(change: Change, problem: str) -> None:
    answer = copy.deepcopy(ANSWER)
    (*path, last), value = change
    place = answer["meta_info"]
    for step in path:
        place = place[step]
    place[last] = value
    with pytest.raises(TeacherError, match=problem):
        rows_of(answer)


def test_null_is_nan() -> None:
    answer = copy.deepcopy(ANSWER)
    answer["meta_info"][TOKEN][1][0] = answer["meta_info"][TOP][1][0][0] = None
    with pytest.raises(NonFiniteError):
        rows_of(answer)


@pytest.mark.parametrize("answer", [[ANSWER], {"error": {"message": "aborted"}}, "x", None])
def test_no_answer_is_refused(answer: Any) -> None:
    with pytest.raises(TeacherError, match="lacks a field or has another shape"):
        rows_of(answer)
