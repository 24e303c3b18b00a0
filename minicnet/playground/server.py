"""A page on which a visitor draws, and watches noise become an image that follows the drawing.

    python -m minicnet.playground                               # opens the browser; the weights come with minicnet
    python -m minicnet.playground --run runs/mnist-edges        # and a run folder of yours
    python -m minicnet.playground --port 8000 --no-browser

The page is for this computer alone. The server listens on 127.0.0.1 and answers:

    GET /, /style.css, /app.js      the page
    GET /models                     what there is to draw with
    POST /example, /picture?model   something to begin with; what is found in an image file
    POST /draw                      a wish (drawing.py) -> a line of JSON for each step as soon as it is done
    POST /gif                       a wish -> the drawing as an animation

One worker draws. A visitor's next wish, or leaving, ends the drawing under way within one step.
"""

import contextlib
import json
import queue
import re
import select
import socket
import sys
import threading
import traceback
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from minicnet import cli
from minicnet.checkpoints import WEIGHTS
from minicnet.colours import DARK, LIGHT
from minicnet.devices import pick_device
from minicnet.playground.drawing import Model, animation, chosen, draw, number, read_wish

PAGE = {f"/{name}".removesuffix("index.html"): (kind, (Path(__file__).parent / name).read_bytes()) for name, kind in (
    ("index.html", "text/html"), ("style.css", "text/css"), ("app.js", "text/javascript"))}  # nothing else is served
LARGEST_WISH, LARGEST_PICTURE = 2**16, 2**23  # bytes
MOST_WAITING = 24  # wishes, the one that is drawn included
PATIENCE = 20  # s for a visitor to send or to take what was promised
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy":
           "default-src 'self'; img-src 'self' blob: data:; frame-ancestors http://localhost:* http://127.0.0.1:*"}


class Refusal(ValueError):
    """What is asked for is not done. The message is one sentence for the visitor."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Cancelled(Exception):
    """Nobody waits for this drawing any more."""


class Playground(ThreadingHTTPServer):
    """The server, at `url` once `serve_forever` runs. port: 0 is any that is free. Raises OSError if it is taken."""

    daemon_threads, request_queue_size = True, 64

    def __init__(self, models, port=0):
        self.models = {model.name: model for model in models}
        self.worker, self.lock = ThreadPoolExecutor(1), threading.Lock()
        self.waiting = {}  # the event that cancels each job: whose it is
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def submit(self, visitor, job):
        """Has the worker do job(tell), and cancels the visitor's jobs before it. -> a queue, the event that cancels it.

        The queue gets (False, what the job tells) and at last (True, what it returns, or the exception that it raises).
        Raises Refusal if too many wait.
        """
        told, cancel = queue.SimpleQueue(), threading.Event()

        def tell(line):
            if cancel.is_set():
                raise Cancelled
            told.put((False, line))

        def work():
            try:
                result = job(tell)
            except Exception as error:
                result = error
                if not isinstance(error, (Cancelled, ValueError)):
                    traceback.print_exc()  # a fault, of which the visitor gets one sentence
            with self.lock:
                del self.waiting[cancel]
            told.put((True, result))

        with self.lock:
            for earlier in [event for event, whose in self.waiting.items() if whose == visitor]:
                earlier.set()
            if len(self.waiting) >= MOST_WAITING:
                raise Refusal(503, "too much is asked for at once: try again in a moment")
            self.waiting[cancel] = visitor
            self.worker.submit(work)
        return told, cancel

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # but that a visitor leaves is no error

    def server_close(self):
        super().server_close()
        with self.lock:
            for event in self.waiting:
                event.set()
        self.worker.shutdown()


class Handler(BaseHTTPRequestHandler):
    """Answers one visitor."""

    server_version, sys_version, protocol_version, timeout = "minicnet", "", "HTTP/1.1", PATIENCE

    def do_GET(self):
        self.try_to(self.get)

    def do_POST(self):
        self.try_to(self.post)

    def try_to(self, do):
        try:
            if not re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", self.headers.get("Host", "")):
                raise Refusal(403, "this page is for this computer alone")
            if self.headers.get("Origin") not in (None, f"http://{self.headers['Host']}"):
                raise Refusal(403, "a page from elsewhere must not use this one")
            do(urlsplit(self.path))
        except (ValueError, RecursionError) as error:  # JSON may be nested too deeply
            self.send_error(getattr(error, "status", 400), str(error))
        except Cancelled:
            self.send_error(409, "a newer wish took the place of this one")
        except OSError:  # the visitor left
            raise
        except Exception as error:
            self.send_error(500, f"this failed: {error}")

    def get(self, url):
        if url.path == "/models":
            return self.answer(200, {"models": [model.about() for model in self.server.models.values()],
                                     "colours": {**LIGHT, **DARK}})
        if url.path not in PAGE:
            raise Refusal(404, "there is no such page")
        self.answer(200, PAGE[url.path][1], PAGE[url.path][0] + "; charset=utf-8")

    def post(self, url):
        models, submit = self.server.models, self.server.submit
        if url.path == "/picture":
            asked = dict(parse_qsl(url.query))
            model, data = chosen(models, asked), self.body(LARGEST_PICTURE)
            return self.answer(200, self.result_of(submit(asked.get("visitor"), lambda tell: model.picture(data))))
        if url.path not in ("/draw", "/gif", "/example"):
            raise Refusal(404, "there is no such page")
        asked = json.loads(self.body(LARGEST_WISH))
        model, visitor = chosen(models, asked), str(asked.get("visitor"))
        if url.path == "/example":
            n = number(asked, "n", 0, 10**9, whole=True)
            return self.answer(200, self.result_of(submit(visitor, lambda tell: model.example(n))))
        wish = read_wish(models, asked)
        if url.path == "/gif":
            gif = self.result_of(submit(visitor, lambda tell: animation(wish, tell)))
            return self.answer(200, gif, "image/gif")
        self.stream(submit(visitor, lambda tell: draw(wish, tell)))

    def body(self, limit):
        """What was sent. Raises Refusal if it is too long, or does not say how long it is."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,18}", length):
            raise Refusal(411, "what is sent must say how long it is")
        if int(length) > limit:
            raise Refusal(413, f"at most {limit:,} bytes can be sent")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise ConnectionAbortedError
        return data

    def result_of(self, job):
        *_, (_, result) = self.follow(*job)
        return result

    def stream(self, job):
        """Sends what a job tells, a line of JSON each. The last line is {"done": true}, or says why it is not."""
        with contextlib.closing(self.follow(*job)) as following:
            self.headed(200, "application/x-ndjson", {"Connection": "close"})
            try:
                for done, line in following:
                    self.wfile.write(json.dumps({"done": True} if done else line).encode() + b"\n")
            except Cancelled:
                self.wfile.write(b'{"cancelled": true}\n')
            except OSError:
                raise
            except Exception as error:
                self.wfile.write(json.dumps({"error": f"this failed: {error}"}).encode() + b"\n")

    def follow(self, told, cancel):
        """Yields (False, what the job tells), ..., (True, what it returns), or raises what it does.

        If the visitor leaves, the job is cancelled, and ConnectionAbortedError is raised.
        """
        done = False
        try:
            while not done:
                if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionAbortedError
                with contextlib.suppress(queue.Empty):
                    done, what = told.get(timeout=0.1)
                    if isinstance(what, Exception):
                        raise what
                    yield done, what
        finally:
            cancel.set()

    def headed(self, status, kind, more):
        self.send_response(status)
        for name, value in {"Content-Type": kind, **HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status, content, kind="application/json"):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.headed(status, kind, {"Content-Length": len(data)})
        self.wfile.write(data)

    def send_error(self, code, message=None, explain=None):
        """One sentence as JSON, and the connection ends: what else was sent on it is not known."""
        self.close_connection = True
        self.answer(code, {"error": message or HTTPStatus(code).phrase})

    def log_message(self, *_):
        pass


def shipped(device):
    """The Models of the weights that come with minicnet, the simplest first."""
    models = [Model(folder, device) for folder in WEIGHTS.iterdir() if (folder / "base.pt").exists()]
    return sorted(models, key=lambda model: model.image_shape)


def parse_arguments(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--run", type=Path, action="append", default=[], metavar="DIR",
                        help="a run folder, with base.pt and control.pt, to draw with, too; may be repeated")
    parser.add_argument("--port", type=cli.whole_number, default=0, help="a free one unless given")
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")
    return parser.parse_args(argv)


def main(args):
    device = pick_device(args.device)
    models = shipped(device)
    for folder in args.run:
        models.append(Model(folder, device))
        models[-1].name = str(folder)  # there may be other runs of that name
    try:
        server = Playground(models, args.port)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on port {args.port}: {error}; choose another --port") from error
    with server:
        print(f"{server.url} is the page; Ctrl-C ends it", flush=True)
        if not args.no_browser:
            # Not in this thread: a text browser does not return before it is closed.
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
