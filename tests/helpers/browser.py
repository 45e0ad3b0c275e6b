"""A headless Chromium over the DevTools protocol, through pipes: no driver and no package."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def find_browser() -> str | None:
    """The Chromium that the variable CASKD_BROWSER names; None without it."""
    return shutil.which(os.environ.get("CASKD_BROWSER", ""))


class Page:
    """One tab. Every error of its script, and everything blocked or logged, is in `problems`."""

    def __init__(self, requests: int, answers: int) -> None:
        """Attach to a new tab of the browser at the other ends of these pipes."""
        self._requests = os.fdopen(requests, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")
        self._count, self._session = 0, ""
        self.problems: list[Any] = []
        self._events: set[str] = set()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """Close both pipes; the browser then ends."""
        self._requests.close()
        self._answers.close()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._requests.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def open(self, url: str, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """Load a page in a window of this width, in pixels, and wait until it is complete."""
        self.problems.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self._events.discard("Page.loadEventFired")
        self.send("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            self._note(self._read())

    def run(self, expression: str) -> Any:
        """Value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def key(self, name: str, code: int) -> None:
        """Press and release a key, such as ArrowRight with code 39."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code
            )

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save the window, or the whole page, as PNG."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser ended")
            content += byte
        return dict(json.loads(content))

    def _note(self, event: dict[str, Any]) -> None:
        method = event.get("method", "")
        self._events.add(method)
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.problems.append(event["params"])


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile; it ends with the block."""
    reads, requests = os.pipe()
    answers, writes = os.pipe()

    def connect() -> None:
        os.dup2(os.dup(reads), 103), os.dup2(os.dup(writes), 104)
        os.dup2(103, 3), os.dup2(104, 4)

    process = subprocess.Popen(
        [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe",
         f"--user-data-dir={profile}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        close_fds=False, preexec_fn=connect,
    )  # fmt: skip
    os.close(reads), os.close(writes)
    page = None
    try:
        page = Page(requests, answers)
        yield page
    finally:
        if page is not None:
            page.close()
        process.kill()
        process.wait()
