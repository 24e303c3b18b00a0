"""What the live page draws with, what a visitor wishes for, and what is told of each step while it is drawn.

A wish is a JSON object: "model", "prompt", "guidance", "steps", "seed", "samples", "zeroed" (the zero convolutions at
their start), "controls" {condition: {"scale", "from", "until"}}, and what was drawn, as base64 of bytes: "ink" (H, W),
of which the condition is found, "lines" (H, W), which are taken as they are, and "palette" (4, 4, 3).
"""

import base64
import contextlib
import copy
import functools
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from minicnet.checkpoints import CheckpointError, load_base, load_control, schedule_of
from minicnet.colours import DARK, LIGHT, colourise
from minicnet.conditions import CONDITIONS
from minicnet.data import NOUNS
from minicnet.digits import describe_digits, draw_digits
from minicnet.figures import tiled
from minicnet.pictures import condition_from_map, read_picture
from minicnet.sampling import generate, seeded_noise
from minicnet.unet import Downsample
from minicnet.words import DIGITS, STROKES, tokenize, with_article

LIMITS = {"guidance": (0, 10), "steps": (1, 100), "samples": (1, 8), "seed": (0, 10**9)}
LONGEST_PROMPT = 200  # characters
EXAMPLES, EXAMPLES_SEED = 100, 2  # training draws its digits with the seed 0, tests with 1


class Model:
    """A base and its ControlNets, by the names of their conditions. Raises CheckpointError unless all fit together."""

    def __init__(self, folder, device):
        self.name, self.device, self.nets = folder.name, device, {}
        self.unet, about = load_base(folder / "base.pt")
        self.schedule = schedule_of(about).to(device)
        self.image_shape, self.dataset = about["image_shape"], about["dataset"]
        for path in sorted(set(folder.glob("*.pt")) - {folder / "base.pt"}):
            net, about = load_control(path, self.unet)
            self.nets[about["condition"]] = net.to(device)
        if not self.nets:
            raise CheckpointError(f"there is no control in {folder}: train one first, or name another folder")
        self.unet.to(device)
        self.zeroed = {name: at_its_start(net) for name, net in self.nets.items()}
        self.line = next((name for name in self.nets if name != "colour"), None)  # the condition that lines show
        self.known = None, []  # the wish of the last drawing without control, and its frames

    def about(self):
        """What the page has to know. words: for each place in a prompt, in order, the phrases that fit there."""
        words = {"digit" if self.nouns == DIGITS else "thing": self.nouns}
        if self.dataset == "drawn":
            words = {"stroke": STROKES, **words, "slant": ("leaning left", "leaning right")}
        if self.dataset.startswith("coloured"):
            colours = (*LIGHT, *DARK)
            words = {"ink": colours, **words, "paper": [f"on {colour} paper" for colour in colours]}
        stages = ["downsampling" if isinstance(stage[0], Downsample) else "block" for stage in self.unet.encoder.stages]
        return {"name": self.name, "shape": self.image_shape, "controls": list(self.nets), "line": self.line,
                "words": words, "places": ["first convolution", *stages, "middle"]}

    @property
    def nouns(self):
        """A word for each thing that the base draws."""
        return NOUNS.get(self.dataset.removeprefix("coloured-"), DIGITS)

    @functools.cached_property
    def digits(self):
        """Images of digits that no network has seen, and a prompt for each."""
        images, labels = draw_digits(EXAMPLES, EXAMPLES_SEED)
        if self.dataset.startswith("coloured"):
            return colourise(images, labels, EXAMPLES_SEED)
        if self.dataset == "drawn":
            return images, describe_digits(EXAMPLES, EXAMPLES_SEED)[0]
        return images, [with_article(DIGITS[label]) for label in labels]

    def example(self, n):
        """Something to begin with: the n-th digit, or, for other images, one that the base draws without control."""
        if self.nouns == DIGITS:
            images, prompts = self.digits
            return {"prompt": prompts[n % EXAMPLES], **self.found_in(images[n % EXAMPLES][None])}
        prompt = with_article(self.nouns[n % len(self.nouns)])
        x_T = seeded_noise((1, *self.image_shape), n, self.device)
        image = generate(self.unet, self.schedule, tokenize([prompt]).to(self.device), x_T, guidance=2)
        return {"prompt": prompt, **self.found_in(image.cpu())}

    def picture(self, data):
        """What is found in an image file, given its bytes. Raises ValueError, one sentence, if nothing is."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "the picture")
            path.write_bytes(data)
            try:
                picture = read_picture(path)
            except ValueError as error:
                raise ValueError(str(error).replace(f"{folder}/", "")) from error
        channels, *size = self.image_shape
        found = self.found_in(condition_from_map(picture, "colour", channels, size) * 2 - 1)
        if self.line and not any(base64.b64decode(found["lines"])):
            raise ValueError("nothing to follow was found in the picture: take one of more contrast")
        return found

    def found_in(self, image):
        """image (1, C, H, W) in [-1, 1] -> its lines and its palette, as the page sends them back."""
        palette = F.adaptive_avg_pool2d((image + 1) / 2, 4).expand(-1, 3, -1, -1)[0].permute(1, 2, 0)  # (4, 4, 3)
        lines = CONDITIONS[self.line](image) if self.line else torch.zeros(self.image_shape[1:])
        return {"lines": encoded(lines), "palette": encoded(palette)}


def encoded(values):
    """Values in [0, 1] as base64 of a byte each; what lies outside is cut off."""
    return base64.b64encode((values.clamp(0, 1) * 255).round().byte().cpu().numpy().tobytes()).decode()


# -- Wishes ------------------------------------------------------------------------------------------------------------

def read_wish(models, wish):
    """What a page sent, checked: all that `draw` needs. models: {name: Model}. Raises ValueError, one sentence."""
    model = chosen(models, wish)
    prompt, samples = wish.get("prompt", ""), number(wish, "samples", *LIMITS["samples"], whole=True)
    if not isinstance(prompt, str) or len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"prompt must be a text of at most {LONGEST_PROMPT} characters")
    try:
        tokens = tokenize([prompt] * samples).to(model.device)
    except ValueError as error:
        raise ValueError(str(error).partition(" Known are")[0]) from error  # the page shows them
    H, W = model.image_shape[1:]
    drawn = {"ink": pixels(wish, "ink", H, W), "lines": pixels(wish, "lines", H, W),
             "palette": pixels(wish, "palette", 4, 4, 3)}
    controls, spans, asked = {}, {}, wish.get("controls", {})
    for name, settings in asked.items() if isinstance(asked, dict) else [("", {})]:
        if name not in model.nets or not isinstance(settings, dict):
            raise ValueError(f"controls here are {', '.join(model.nets)}, each with scale, from and until")
        scale = number(settings, "scale", 0, 2)
        spans[name] = number(settings, "from", 0, 1), number(settings, "until", 0, 1)
        if not spans[name][0] < spans[name][1]:
            raise ValueError("a control must act from a share of the steps until a later one")
        condition = condition_of(model, name, drawn)
        if condition is not None:  # where nothing is drawn, nothing is added
            nets = model.zeroed if wish.get("zeroed") is True else model.nets
            controls[name] = nets[name], condition.to(model.device).expand(samples, -1, -1, -1), scale
    return SimpleNamespace(model=model, prompt=tokens, controls=controls, spans=[spans[name] for name in controls],
                           guidance=number(wish, "guidance", *LIMITS["guidance"]),
                           steps=number(wish, "steps", *LIMITS["steps"], whole=True),
                           seed=number(wish, "seed", *LIMITS["seed"], whole=True))


def chosen(models, wish):
    """The Model that a wish names. Raises ValueError."""
    name = wish.get("model") if isinstance(wish, dict) else None
    if not isinstance(name, str) or name not in models:
        raise ValueError(f"model must be one of {', '.join(models)}")
    return models[name]


def number(wish, name, low, high, whole=False):
    value = wish.get(name)
    if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:  # NaN is refused, too
        raise ValueError(f"{name} must be a {'whole ' * whole}number from {low} to {high}")
    return value


def pixels(wish, name, *shape):
    """Bytes in base64 -> a tensor of that shape in [0, 1], or None if there are none."""
    if wish.get(name) is None:
        return None
    try:
        data = base64.b64decode(wish[name], validate=True)
        return torch.tensor(np.frombuffer(data, np.uint8).reshape(shape).copy()) / 255
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {' x '.join(map(str, shape))} bytes in base64") from error


def condition_of(model, name, drawn):
    """The condition (1, K, H, W) called `name` of what was drawn, or None if nothing was."""
    if name == "colour":
        if drawn["palette"] is None:
            return None
        # As `colour` makes it of an image whose means over a 4 x 4 grid these are.
        means = drawn["palette"].permute(2, 0, 1)[None]
        means = means if model.image_shape[0] == 3 else means.mean(1, keepdim=True)
        return F.interpolate(means, model.image_shape[1:], mode="bilinear", align_corners=False).clamp(0, 1)
    condition = torch.zeros(1, 1, *model.image_shape[1:])
    if drawn["ink"] is not None and drawn["ink"].any():
        condition = CONDITIONS[name](drawn["ink"][None, None] * 2 - 1)
    if drawn["lines"] is not None:
        lines = drawn["lines"][None, None]
        condition = condition.maximum(lines if name == "depth" else (lines > 0.5).float())
    return condition if condition.any() else None


def at_its_start(net):
    """A copy of a ControlNet, with its zero convolutions as before training."""
    net = copy.deepcopy(net)
    for conv in (*net.zero_skips, net.zero_middle, net.condition_encoder[-1]):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    return net


# -- Drawing -----------------------------------------------------------------------------------------------------------

def draw(wish, tell):
    """Draws with the controls and without them, from the same noise. tell(line): called with a dict for each step.

    Without them only if the last drawing was not of the same base, prompt, noise, guidance and steps. What `tell`
    raises ends the drawing. Returns the frames (t, x_t, x_0) with controls and without.
    """
    model, samples = wish.model, len(wish.prompt)
    same = wish.prompt[0].tolist(), samples, wish.guidance, wish.steps, wish.seed
    known = model.known[1] if model.known[0] == same else []

    def film(side, controls=(), spans=(), inside=None):
        frames = []

        def look(t, x_t, x_0):
            if inside and known:
                show("without", len(frames), *known[len(frames)])
            show(side, len(frames), t, x_t, x_0, inside and inside())
            frames.append((t, x_t, x_0))

        x_T = seeded_noise((samples, *model.image_shape), wish.seed, model.device)
        generate(model.unet, model.schedule, wish.prompt, x_T, controls, spans=spans, guidance=wish.guidance,
                 steps=wish.steps, hook=look)
        return frames

    def show(side, step, t, x_t, x_0, inside=None):
        tell({"side": side, "step": step, "t": t, "x_t": encoded((x_t + 1) / 2), "x_0": encoded((x_0 + 1) / 2),
              "inside": inside})

    tell({"seen": {name: encoded(condition[0]) for name, (_, condition, _) in wish.controls.items()},
          "steps": wish.steps, "samples": samples})
    with listening(wish) as inside:
        frames = film("with", list(wish.controls.values()), wish.spans, inside)
    known = known or film("without")
    model.known = same, known
    pairs = ((x, y) for frame, other in zip(frames, known) for x, y in zip(frame[1:], other[1:]))
    tell({"identical": all(torch.equal(x, y) for x, y in pairs)})
    return frames, known


@contextlib.contextmanager
def listening(wish):
    """Yields inside(): what the zero convolutions added in the last step, {condition: [{"size", "map"}, ...]}.

    size: for each sample the norm of the residual over that of the base's feature that it is added to. map: the mean
    of its magnitude over the channels, (B, h, w), white where it is largest. Out of its span, a control says nothing.
    """
    heard, samples = {}, len(wish.prompt)

    def inside():
        skips, middle, *_ = heard["base"]
        told = {}
        for name, (_, _, scale) in wish.controls.items():
            if control := heard.pop(name, None):
                residuals = [scale * residual[:samples] for residual in (*control.skips, control.middle)]
                features = [feature[:samples] for feature in (*skips, middle)]  # of guidance's two, those of the prompt
                told[name] = [about(*pair) for pair in zip(residuals, features)]
        return told

    def about(residual, feature):
        size, where = residual.flatten(1).norm(dim=1) / feature.flatten(1).norm(dim=1), residual.abs().mean(1)
        return {"size": [round(share, 5) for share in size.tolist()],
                "map": encoded(where / where.amax((1, 2), keepdim=True).clamp(min=1e-12))}

    with contextlib.ExitStack() as stack:
        for name, module in (("base", wish.model.unet.encoder), *((name, net) for name, (net, *_) in
                                                                  wish.controls.items())):
            handle = module.register_forward_hook(lambda _, args, output, name=name: heard.__setitem__(name, output))
            stack.callback(handle.remove)
        yield inside


def animation(wish, tell):
    """The drawing as a GIF, bytes: in each row the conditions, x_t and predicted x_0, and x_0 without control."""
    frames, known = draw(wish, tell)
    conditions = [condition.expand(-1, 3, -1, -1) * 2 - 1 for _, condition, _ in wish.controls.values()]
    pictures = []
    for (_, x_t, x_0), (_, _, alone) in zip(frames, known):
        columns = [*conditions, *(images.expand(-1, 3, -1, -1) for images in (x_t, x_0, alone))]
        sheet = Image.fromarray((tiled(torch.stack(columns, 1)) * 255).astype(np.uint8))
        pictures.append(sheet.resize((4 * sheet.width, 4 * sheet.height), Image.Resampling.NEAREST))
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], loop=0,
                     duration=[100] * (len(pictures) - 1) + [2000])
    return file.getvalue()
