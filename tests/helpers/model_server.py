"""A server that answers as vLLM and SGLang do, from a tiny model in this process, with faults."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Fault = str | None
FaultOf = Callable[[int, dict[str, Any]], Fault]
"""The fault of the n-th scoring request, given its body."""


class ModelServer:
    """One model behind a URL.

    Attributes:
        model: a transformers model; another one may be put in its place.
        kind: vllm or sglang.
        fault: which fault a request meets: 500, 429, 400, kill, hang, truncated, wrong_ids, nan,
            clamp or foreign_id; an answer also filtered, blocked, refused, empty, unfinished,
            no_usage or other_model.
        asked: the bodies of the scoring requests, and of those for answers.
        gives_logprobs: of the tokens of answers; without, they are `ignored` or `refused`.
        headers: of all requests.
        gone: refuses every request with a closed connection while it is set.
    """

    def __init__(self, model: Any, *, kind: str = "vllm", name: str = "tiny", **options: Any):
        self.model, self.kind, self.name = model, kind, name
        self.fault: FaultOf = lambda n, body: None
        self.max_logprobs = options.get("max_logprobs", 64)
        self.max_model_len = options.get("max_model_len", 257)
        self.token = options.get("token")
        self.tokenizer = options.get("tokenizer")
        self.gives_logprobs = options.get("gives_logprobs", True)
        self.limit_name = options.get("limit_name", "max_tokens")
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.gone = threading.Event()
        self.closing = threading.Event()
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.connections: list[Any] = []
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def drop_connections(self, keep: int = 0) -> None:
        """Close all connections, as a restart does, or all but the newest ones."""
        for connection in self.connections[: len(self.connections) - keep]:
            connection.close_connection = True
            try:
                connection.connection.shutdown(2)
            except OSError:
                continue

    def close(self) -> None:
        """Stop."""
        self.closing.set()
        self.drop_connections()
        self._server.shutdown()
        self._server.server_close()

    def logprobs(self, tokens: list[int]) -> torch.Tensor:
        """[len, V] log-probabilities behind each token."""
        with self._lock, torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([tokens])).logits[0].float()
        return logits.log_softmax(dim=-1)

    def vllm(self, body: dict[str, Any], fault: Fault) -> Any:
        """The answer of /v1/completions."""
        tokens, k = body["prompt"], body["prompt_logprobs"]
        table = self.logprobs(tokens)
        rows: list[Any] = [None]
        for at, label in enumerate(tokens[1:]):
            values, ids = table[at].topk(k)  # in no order among ties
            rank = int((table[at] >= table[at, label]).sum())
            row = {label: (float(table[at, label]), rank)}
            row |= {
                int(i): (float(v), n + 1) for n, (i, v) in enumerate(zip(ids, values, strict=True))
            }
            rows.append(
                {
                    str(i): {"logprob": v, "rank": r, "decoded_token": f"t{i}"}
                    for i, (v, r) in row.items()
                }
            )
        if fault == "wrong_ids":
            rows[-1] = {str(int(i) + 1): cell for i, cell in rows[-1].items()}
        if fault == "clamp":
            rows[-1][str(tokens[-1])]["logprob"] = -9999.0
        if fault == "foreign_id":
            lowest = min(
                rows[-1], key=lambda i: rows[-1][i]["logprob"] + (int(i) == tokens[-1]) * 99
            )
            rows[-1]["999999"] = rows[-1].pop(lowest)
        return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": rows}]}

    def sglang(self, body: dict[str, Any], fault: Fault) -> Any:
        """The answer of /generate."""
        tokens, k, start = body["input_ids"], body["top_logprobs_num"], body["logprob_start_len"]
        table = self.logprobs(tokens)
        own: list[Any] = [[None, tokens[start], None]]
        tops: list[Any] = [None]
        for at in range(start, len(tokens) - 1):
            values, ids = table[at].topk(k)
            own.append([float(table[at, tokens[at + 1]]), tokens[at + 1], None])
            tops.append([[float(v), int(i), None] for v, i in zip(values, ids, strict=True)])
        for entry in own:  # SGLang clips the ids of pictures, and with them the last of all
            entry[1] = entry[1] if entry[1] < table.shape[1] - 1 else 0
        if fault == "wrong_ids":
            own[-1][1] += 1
        if fault == "nan":
            tops[-1][0][0] = own[-1][0] = None
        if fault == "two_values":
            own[1][0] = tops[1][0][0] - 1
            own[1][1] = tokens[start + 1] = tops[1][0][1]
        return {"text": "x", "meta_info": {"input_token_logprobs": own, "input_top_logprobs": tops}}

    def generated(self, body: dict[str, Any], fault: Fault) -> Any:
        """The answer of /v1/completions without `prompt_logprobs`, or of /v1/chat/completions."""
        ids, cells, text, end, num_prompt = self._answer(body)
        if fault in ("filtered", "empty", "refused"):
            text, ids, cells = "", [], []
            end = "content_filter" if fault == "filtered" else "stop"
        reason = None if fault == "unfinished" else end
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        named = body.get("logprobs") and self.gives_logprobs is True
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text or None}
            if fault == "refused":
                choice["message"]["refusal"] = "I cannot help with that."
            if named:
                content = [
                    {
                        "token": token,
                        "logprob": value,
                        "top_logprobs": [{"token": t, "logprob": v} for t, v in top.items()],
                    }
                    for token, value, top in cells
                ]
                choice["logprobs"] = {"content": content}
        else:
            choice["text"] = text
            if named:
                names = ("tokens", "token_logprobs", "top_logprobs")
                lists = [list(column) for column in zip(*cells, strict=True)] or [[], [], []]
                choice["logprobs"] = dict(zip(names, lists, strict=True))
        usage = {"prompt_tokens": num_prompt, "completion_tokens": len(ids)}
        found = {"model": self.name, "choices": [choice], "usage": usage}
        if fault == "no_usage":
            del found["usage"]
        return {**found, "model": "another"} if fault == "other_model" else found

    def _answer(self, body: dict[str, Any]) -> tuple[list[int], list[Any], str, str, int]:
        """Ids, their log-probabilities, text, how it ended, tokens of the prompt."""
        tokenizer, heat = self.tokenizer, body["temperature"]
        asked = body.get("prompt")
        if "messages" in body:
            asked = "".join(message["content"] for message in body["messages"])
        if isinstance(asked, str):
            asked = tokenizer.encode(asked, add_special_tokens=False)
        draws = torch.Generator().manual_seed(body.get("seed", 0))
        ids: list[int] = []
        cells: list[Any] = []
        text = ""
        while len(ids) < body[self.limit_name]:
            row = self.logprobs([*asked, *ids])[-1]
            drawn = row.argmax()
            if heat:
                drawn = torch.multinomial((row / heat).softmax(0), 1, generator=draws)
            ids.append(int(drawn))
            top = {tokenizer.decode([int(i)]): float(row[i]) for i in row.topk(2).indices}
            cells.append((tokenizer.decode(ids[-1:]), float(row[ids[-1]]), top))
            text = tokenizer.decode(ids, skip_special_tokens=True)
            found = [text.find(wanted) for wanted in body.get("stop", []) if wanted in text]
            if found or ids[-1] == tokenizer.eos_token_id:
                return ids, cells, text[: min(found, default=len(text))], "stop", len(asked)
        return ids, cells, text, "length", len(asked)


class _Handler(BaseHTTPRequestHandler):
    owner: ModelServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.owner.connections.append(self)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.owner
        listed = {"id": owner.name, "root": "/x/y", "max_model_len": owner.max_model_len}
        known: dict[str, Any] = {"/v1/models": {"data": [listed]}}
        if owner.kind == "vllm":
            known["/version"] = {"version": "0.32.1"}
        else:
            known["/model_info"] = {"model_path": "/x/y", "weight_version": "default"}
            known["/server_info"] = {"version": "0.5.23"}
        self._guarded(lambda: known.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._guarded(lambda: self._post(body))

    def _guarded(self, answer: Callable[[], Any]) -> None:
        owner = self.owner
        owner.headers.append(dict(self.headers))
        if owner.gone.is_set():
            self.close_connection = True
            return
        given = self.headers.get("Authorization")
        if owner.token is not None and given != f"Bearer {owner.token}":
            self._send(401, {"error": f"invalid token {given}"})
            return
        found = answer()
        if found is None:
            self._send(404, {"detail": "Not Found"})
        elif found != "sent":
            self._send(200, found)

    def _post(self, body: dict[str, Any]) -> Any:
        owner = self.owner
        if self.path == "/tokenize" and owner.tokenizer is not None:
            ids = owner.tokenizer.encode(body["prompt"], add_special_tokens=False)
            return {"tokens": ids, "count": len(ids)}
        scoring = {"vllm": "/v1/completions", "sglang": "/generate"}[owner.kind]
        if self.path not in (scoring, "/v1/completions", "/v1/chat/completions"):
            return None
        with owner._lock:
            number = len(owner.asked)
            owner.asked.append(body)
            owner.busy += 1
            owner.most_busy = max(owner.busy, owner.most_busy)
        try:
            return self._scored(body, owner.fault(number, body))
        finally:
            with owner._lock:
                owner.busy -= 1

    def _scored(self, body: dict[str, Any], fault: Fault) -> Any:
        owner = self.owner
        if fault in ("500", "429", "400"):
            self._send(int(fault), {"error": "on purpose"}, {"Retry-After": "0"})
            return "sent"
        if fault == "302":
            self._send(302, {}, {"Location": "http://127.0.0.1:9/elsewhere"})
            return "sent"
        if fault == "kill":
            self.close_connection = True
            return "sent"
        if fault == "hang":
            owner.closing.wait(20)
            self.close_connection = True
            return "sent"
        k = body.get("prompt_logprobs", body.get("top_logprobs_num"))
        if k is None:
            return self._generated(body, fault)
        if k > min(owner.max_logprobs, owner.model.config.vocab_size):
            text = f"Requested prompt logprobs of {k}, which is greater than max allowed: "
            self._send(400, {"message": text + str(owner.max_logprobs)})
            return "sent"
        if fault == "nan" and owner.kind == "vllm":
            self._send(400, {"message": "Out of range float values are not JSON compliant"})
            return "sent"
        found = getattr(owner, owner.kind)(body, fault)
        if fault == "truncated":
            self._send(200, found, cut=40)
            return "sent"
        return found

    def _generated(self, body: dict[str, Any], fault: Fault) -> Any:
        owner = self.owner
        wrong = None
        if owner.limit_name not in body:
            wrong = f"Unsupported parameter: use '{owner.limit_name}' instead"
        elif owner.gives_logprobs == "refused" and body.get("logprobs"):
            wrong = "logprobs are not supported by this model"
        elif fault == "blocked":
            wrong = "The response was filtered (code: content_filter)"
        if wrong is not None:
            self._send(400, {"error": {"message": wrong}})
            return "sent"
        found = owner.generated(body, fault)
        if fault == "truncated":
            self._send(200, found, cut=40)
            return "sent"
        return found

    def _send(
        self, status: int, value: Any, headers: dict[str, str] | None = None, cut: int = 0
    ) -> None:
        data = json.dumps(value).encode()
        data = data[: len(data) - cut] if cut else data
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(model: Any, **options: Any) -> Iterator[ModelServer]:
    """A server that runs inside the block."""
    server = ModelServer(model, **options)
    try:
        yield server
    finally:
        server.close()


def first_times(count: int, fault: str, after: int = 0) -> FaultOf:
    """The fault of `count` requests behind the first `after`."""
    return lambda n, body: fault if after <= n < after + count else None


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition of another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)
