"""A headless Chromium, driven through a pipe by the DevTools protocol; no driver to install."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--remote-debugging-pipe", "--hide-scrollbars",
)  # fmt: skip


class Tab:
    """One page of a browser. `errors` are the messages of its console and of its scripts."""

    def __init__(self, send, receive):
        self._send, self._receive = send, receive
        self._last, self._session, self.errors = 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Call a method of the protocol and return its result."""
        self._last += 1
        session = {"sessionId": self._session} if self._session else {}
        self._send({"id": self._last, "method": method, "params": params, **session})
        return self._until(lambda message: message.get("id") == self._last)["result"]

    def _until(self, wanted):
        while not wanted(message := self._receive()):
            self._note(message)
        assert "error" not in message, message
        return message

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["exception"]["description"])
        elif method == "Log.entryAdded":
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.errors.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:")):
                self.errors.append(f"a request to {url}")

    def open(self, path, width=1280, height=900, dark=False):
        """Open a file in a window of the given size."""
        mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if mobile else 1, mobile=mobile,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def run(self, script):
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def move(self, selector):
        """Move the mouse to the middle of an element."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView()")
        box = self.run(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def press(self, key):
        """Press and release a key."""
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Enter": 13, "Tab": 9}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key],
            )  # fmt: skip

    def screenshot(self, whole=True):
        """Return the page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return b64decode(found["data"])


@contextmanager
def browsing(folder):
    """Yield a tab of a browser that keeps its files in a folder; skip where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed")
    commands, answers = os.pipe(), os.pipe()

    def pipes():
        os.dup2(commands[0], 3)
        os.dup2(answers[1], 4)

    flags = (*FLAGS, f"--user-data-dir={folder}")
    process = subprocess.Popen(
        [program, *flags], preexec_fn=pipes, pass_fds=(3, 4),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(commands[0])
    os.close(answers[1])
    with os.fdopen(commands[1], "wb") as out, os.fdopen(answers[0], "rb") as source:

        def send(message):
            out.write(json.dumps(message).encode() + b"\0")
            out.flush()

        left = b""

        def receive():
            nonlocal left
            while b"\0" not in left:
                more = source.read1(65536)
                assert more, "the browser has ended"
                left += more
            first, _, left = left.partition(b"\0")
            return json.loads(first)

        try:
            yield Tab(send, receive)
        finally:
            process.terminate()
            process.wait()


SHOTS = {"report-1280-light.webp": (1280, 1010, False), "report-390-dark.webp": (390, 844, True)}
"""Width, height and scheme of the screenshots in analysis/figures."""


def shoot(page, folder):
    """Write the screenshots of a report's first screen."""
    with tempfile.TemporaryDirectory() as own, browsing(own) as tab:
        for name, (width, height, dark) in SHOTS.items():
            tab.open(page, width, height, dark)
            image = Image.open(io.BytesIO(tab.screenshot(whole=False)))
            image.save(folder / name, quality=82, method=6)


if __name__ == "__main__":  # python tests/browser.py report.html analysis/figures
    shoot(*(Path(word).resolve() for word in sys.argv[1:3]))
