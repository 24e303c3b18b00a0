"""Drive a headless Chromium through the DevTools protocol, for the tests of the playground."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time

NAMES = "chromium", "chromium-browser", "google-chrome", "chrome"
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars "
         "--disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --remote-debugging-pipe").split()


class Page:
    """A tab. errors: the messages in its console that are errors."""

    def __init__(self, to_browser, from_browser):
        self.to_browser, self.from_browser, self.buffer = to_browser, from_browser, b""
        self.count, self.errors, self.session = itertools.count(1), [], {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def receive(self, end):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            self.buffer += os.read(self.from_browser, 2**16)
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method, **params):
        number, end = next(self.count), time.monotonic() + 120
        message = {"id": number, "method": method, "params": params, **self.session}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to_browser, data):]
        while True:
            message = self.receive(end)
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"])
            if message.get("method") == "Log.entryAdded":
                entry = message["params"]["entry"]
                self.errors += [entry] * (entry["level"] == "error")
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
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def press(self, key, text=""):
        """Press a key, such as "Tab", "ArrowRight" or " "."""
        code = {"Tab": 9, " ": 32, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
                "ArrowDown": 40}[key]
        text = " " if key == " " else text
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code,
                  **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def mouse(self, kind, x, y):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1,
                  buttons=int(kind != "mouseReleased"))

    def stroke(self, points):
        """Draw with the mouse through points [(x, y), ...] in the window's pixels."""
        self.mouse("mousePressed", *points[0])
        for point in points[1:]:
            self.mouse("mouseMoved", *point)
        self.mouse("mouseReleased", *points[-1])

    def screenshot(self, whole=False):
        return base64.b64decode(self.call("Page.captureScreenshot",
                                          captureBeyondViewport=whole)["data"])


@contextlib.contextmanager
def browser(folder):
    """Yield a Page of a Chromium whose profile is in a folder of its own."""
    (read_commands, to_browser), (from_browser, write_answers) = os.pipe(), os.pipe()

    def pipes():  # Chromium reads commands from descriptor 3 and answers to 4
        commands, answers = os.dup(read_commands), os.dup(write_answers)
        os.dup2(commands, 3)
        os.dup2(answers, 4)

    process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={folder}"], preexec_fn=pipes,
                               close_fds=False, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)
        process.terminate()
        process.wait(20)
        os.close(from_browser)
