"""Build and serve the live page: one HTML file that holds the networks and computes for itself.

    python -m minicnet.playground                            # opens the page in the browser
    python -m minicnet.playground --run runs/mnist-edges     # ... with the networks of a run, too
    python -m minicnet.playground --models digits coloured --export page.html

The exported file opens by double click or from any web server, and needs neither Python nor a
connection. It holds the weights in half precision. The networks are written a second time, in the
JavaScript files beside this one, which have the names of the Python files that they follow.
"""

import base64
import contextlib
import functools
import json
import os
import re
import sys
import tempfile
import threading
import webbrowser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from minicnet import cli
from minicnet.checkpoints import WEIGHTS, load_base, load_control, write_atomically
from minicnet.conditions import CONDITIONS, colour_grid
from minicnet.data import NOUNS
from minicnet.data.colours import RGB, colourise
from minicnet.data.digits import describe_digits, draw_digits
from minicnet.data.prompts import with_article
from minicnet.errors import UserError
from minicnet.unet import Downsample
from minicnet.words import COLOURS, DIGITS, LENGTH, STROKES, VOCABULARY

HERE = Path(__file__).parent
NETWORK = ("matmul", "tensor", "words", "unet", "controlnet", "diffusion", "conditions", "worker")
EXAMPLES = 60
EXAMPLES_SEED = 2  # training draws its digits with the seed 0, tests with 1


def convert(folder, name):
    """Convert the base and the controls in a folder. Returns a description, and the weights.

    The description is a dict for the page. The weights are the bytes of all tensors in half
    precision, in the description's order. A control that does not fit is left out with a note.
    Raises UserError if there is no base, or no control that fits.
    """
    unet, checkpoint = load_base(folder / "base.pt")
    shape, dataset = checkpoint["image_shape"], checkpoint["dataset"]
    nets = {"base": unet}
    for path in sorted(set(folder.glob("*.pt")) - {folder / "base.pt"}):
        try:
            net, control = load_control(path, unet)
            if control["condition"] in nets:
                raise UserError(f"{path} is a second control for {control['condition']}")
            nets[control["condition"]] = net
        except UserError as error:
            print(f"note: left out: {error}", file=sys.stderr)
    if len(nets) == 1:
        raise UserError(f"there is no control for the base in {folder}: train one first")

    tensors = {net: {key: t.permute(0, 2, 3, 1) if t.ndim == 4 else t  # as tensor.js expects them
                     for key, t in nets[net].state_dict().items()} for net in nets}
    half = torch.cat([t.reshape(-1) for state in tensors.values() for t in state.values()]).half()
    if not half.isfinite().all():
        raise UserError(f"{folder} holds weights that half precision cannot represent")
    line = next((condition for condition in nets if condition not in ("base", "colour")), None)
    stages = ["downsampling" if isinstance(stage[0], Downsample) else "block"
              for stage in unet.encoder.stages]
    return {
        "name": name, "shape": shape, "settings": unet.settings, "T": len(unet.schedule),
        "nets": {net: [(key, tuple(t.shape)) for key, t in state.items()]
                 for net, state in tensors.items()},
        "line": line, "words": words(dataset), "examples": examples(dataset, line),
        "prompts": [with_article(noun) for noun in nouns(dataset)],
        "places": ["first convolution", *stages, "middle block"],
    }, half.numpy().tobytes()


def nouns(dataset):
    """Return a word for each label of a dataset."""
    return NOUNS.get(dataset.removeprefix("coloured-"), DIGITS)


def words(dataset):
    """Return {attribute: phrases} for the captions of a dataset, in the order of a caption."""
    words = {"digit" if nouns(dataset) == DIGITS else "thing": nouns(dataset)}
    if dataset == "drawn":
        words = {"stroke": STROKES, **words, "lean": ("leaning left", "leaning right")}
    if dataset.startswith("coloured"):
        words = {"ink": COLOURS, **words, "paper": [f"on {colour} paper" for colour in COLOURS]}
    return words


def examples(dataset, line):
    """Return the prompts, lines and palettes of digits that no network has seen.

    There are none for photographs and clothes: there the page draws an image without control, and
    uses its lines. line: the condition that lines stand for, or None.
    """
    if nouns(dataset) != DIGITS:
        return []
    images, labels = draw_digits(EXAMPLES, EXAMPLES_SEED)
    prompts = [with_article(DIGITS[label]) for label in labels]
    if dataset == "drawn":
        prompts, _ = describe_digits(EXAMPLES, EXAMPLES_SEED)
    if dataset.startswith("coloured"):
        images, prompts = colourise(images, labels, EXAMPLES_SEED)
    lines = CONDITIONS[line](images) if line else torch.zeros(len(images), 1, *images.shape[2:])
    palettes = colour_grid(images).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)  # (N, 4, 4, 3)
    return [{"prompt": prompt, "lines": as_bytes(drawn), "palette": as_bytes(palette)}
            for prompt, drawn, palette in zip(prompts, lines, palettes)]


def as_bytes(values):
    """Encode values in [0, 1] as base64, one byte each."""
    data = (values.clamp(0, 1) * 255).round().byte().numpy().tobytes()
    return base64.b64encode(data).decode()


def build(models):
    """Build the page, from pairs (description, weights) as `convert` returns them. Returns HTML."""
    html = (HERE / "index.html").read_text(encoding="utf-8")
    header = {"vocabulary": VOCABULARY, "length": LENGTH, "colours": RGB,
              "models": [description for description, _ in models]}
    parts = {
        "style.css": (HERE / "style.css").read_text(encoding="utf-8"),
        "header": json.dumps(header, separators=(",", ":")).replace("<", "\\u003c"),
        "network": "\n".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in NETWORK),
        "page": "\n".join((HERE / f"{name}.js").read_text(encoding="utf-8")
                          for name in ("files", "app")),
        "weights": "\n".join(
            '<script type="text/plain" class="weights">'
            f"{base64.b64encode(weights).decode()}</script>" for _, weights in models),
    }
    return re.sub(r"\{\{([\w.]+)\}\}", lambda match: parts[match[1]], html)


class Handler(SimpleHTTPRequestHandler):
    """Serve a folder to this computer alone: another Host may be a stranger's page."""

    def send_head(self):
        host = self.headers.get("Host", "")
        if not re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", host):
            return self.send_error(403, "This page is for this computer alone")
        return super().send_head()

    def end_headers(self):
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    allow_reuse_address = os.name == "posix"  # or Windows would let two programs share a port


@contextlib.contextmanager
def serving(html, port=0):
    """Yield a server of the page on 127.0.0.1; port 0 is any that is free. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        write_atomically(Path(folder, "index.html"), html.encode())
        try:
            handler = functools.partial(Handler, directory=folder)
            server = Server(("127.0.0.1", port), handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on port {port} ({error}): choose another "
                            "--port") from error
        with server:
            yield server


def collect(names, runs):
    """Convert the shipped models of these names, and runs. Returns a list of pairs.

    A shipped model that does not load is left out with a note. Raises UserError if a run does not
    load, if two models have the same name, or if there is none.
    """
    models = {}
    for folder in [*(WEIGHTS / name for name in names), *runs]:
        name = folder.resolve().name
        if name in models:
            raise UserError(f"there are two models named {name!r}: rename the folder {folder}, or "
                            "leave the other one out of --models")
        try:
            models[name] = convert(folder, name)
        except UserError as error:
            if folder in runs:
                raise
            print(f"note: left out: {error}", file=sys.stderr)
    if not models:
        raise UserError("there is no model to draw with: train one, and name its folder with --run")
    return list(models.values())


def parse_arguments(argv=None):
    """Read the command line."""
    bases = sorted(WEIGHTS.glob("*/base.pt"), key=lambda path: path.stat().st_size)
    shipped = [path.parent.name for path in bases]  # the simplest first
    parser = cli.parser(__doc__, device=False)
    parser.add_argument("--models", nargs="*", default=shipped, choices=shipped, metavar="NAME",
                        help="the networks that come with minicnet: all of them unless given")
    parser.add_argument("--run", type=Path, action="append", default=[], metavar="FOLDER",
                        help="a run's folder, whose networks are added; may be repeated")
    parser.add_argument("--export", type=Path, metavar="FILE",
                        help="write the page to this file instead of serving it")
    parser.add_argument("--port", type=cli.whole_number(0, 65535), default=0,
                        help="a free one unless given")
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")
    return parser.parse_args(argv)


def main(args):
    """Serve or export the page."""
    html = build(collect(args.models, args.run))
    if args.export:
        write_atomically(args.export, html.encode())
        print(f"{args.export}: {args.export.stat().st_size / 1e6:.1f} MB; open it in a browser")
        return
    with serving(html, args.port) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        print(f"The page is at {url}; end it with Ctrl-C", flush=True)
        if not args.no_browser:
            # In a thread of its own, because a browser in the terminal returns when it is closed.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
