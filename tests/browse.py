"""Drive a headless Chromium through the DevTools protocol, for the tests of the playground."""

import base64
import contextlib
import itertools
import json
import select
import shutil
import subprocess
import time

CHROMIUM = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ("--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars "
         "--disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --remote-debugging-pipe").split()
PIPES = 'exec "$0" "$@" 3<&0 4>&1 >/dev/null 2>&1'  # from 3 it reads commands, and answers to 4


class Page:
    """A tab. errors: exceptions that nothing caught, and what the browser logged."""

    def __init__(self, to_browser, from_browser):
        self.to_browser, self.from_browser, self.buffer = to_browser, from_browser, b""
        self.count, self.errors, self.session = itertools.count(1), [], {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number, end = next(self.count), time.monotonic() + 120
        message = {"id": number, "method": method, "params": params, **self.session}
        self.to_browser.write(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                rest = max(0, end - time.monotonic())
                assert select.select([self.from_browser], [], [], rest)[0], "it does not answer"
                self.buffer += self.from_browser.read(2**16)
            message, _, self.buffer = self.buffer.partition(b"\0")
            message = json.loads(message)
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(message["params"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def run(self, script):
        """Evaluate a JavaScript expression, and await it if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True,
                           returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} did not come true within {seconds} s"
            time.sleep(0.05)

    def open(self, url, width=1280, height=900, dark=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def mouse(self, kind, x, y):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1,
                  buttons=int(kind != "mouseReleased"))

    def stroke(self, points):
        """Draw with the mouse through points [(x, y), ...] in the window's pixels."""
        self.mouse("mousePressed", *points[0])
        for point in points[1:]:
            self.mouse("mouseMoved", *point)
        self.mouse("mouseReleased", *points[-1])

    def screenshot(self):
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@contextlib.contextmanager
def browser(folder):
    """Yield a Page of a Chromium whose profile is in a folder of its own."""
    command = ["sh", "-c", PIPES, CHROMIUM, *FLAGS, f"--user-data-dir={folder}"]
    with subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        try:
            yield Page(process.stdin, process.stdout)
        finally:
            process.terminate()
