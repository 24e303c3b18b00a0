"""The lab carries out what claims declare: it trains arms, draws, measures, and keeps everything.

    python -m minicnet.experiments.forgetting              # one claim; can be stopped and resumed
    python -m minicnet.experiments.forgetting --deciding   # only on the testbed that decides it
    python -m minicnet.experiments.forgetting --quick      # a smoke run: seconds, and no meaning

Trained networks and measured rows are files, named after a hash of all that they depend on: the
base's weights, settings, declaration and code. A file is found again if none of these has changed,
whoever asks for it. So claims share arms, and nothing outdated is used. The hash is of source text
without comments and docstrings, so it does not depend on the version of Python.

Figures and verdicts are made from the stored result alone (plots.py, claim.py).
"""

import ast
import base64
import dataclasses
import datetime
import functools
import hashlib
import importlib
import io
import json
import pickle
import re
import time
from functools import cached_property
from pathlib import Path
from tokenize import COMMENT, generate_tokens

import torch
import torch.nn.functional as F

from minicnet import cli
from minicnet.checkpoints import (
    WEIGHTS,
    load_base,
    load_checkpoint,
    load_control,
    save_checkpoint,
    write_atomically,
)
from minicnet.conditions import CONDITIONS, gaussian_blur
from minicnet.controlnet import Conditioning, controlled, freeze
from minicnet.data import NOUNS, captions, load_dataset
from minicnet.data.prompts import training_prompts, with_article
from minicnet.devices import pick_device, place
from minicnet.diffusion import guided, sample_ddim
from minicnet.evaluation import Classifier, train_classifier
from minicnet.experiments import plots
from minicnet.experiments.claim import Shipped
from minicnet.experiments.measures import MEASURES
from minicnet.figures import save_figure
from minicnet.sampling import seeded_noise
from minicnet.training import WARM_UP, Recipe, Trainer
from minicnet.words import DIGITS, tokenize

FULL = dict(reference=2000, sampling_steps=15, muon_steps=300, adamw_steps=400, batch=1.0,
            base_steps=1, classifier_steps=dict(digits=500, coloured=500, cifar10=3000))
QUICK = dict(images=16, reference=64, sampling_steps=3, muon_steps=2, adamw_steps=2, batch=0.125,
             base_steps=0, classifier_steps=dict(digits=5, coloured=5, cifar10=5))
DRAWING = "images", "reference", "sampling_steps"  # settings that change no trained network
ADAMW_RATE = 1e-3
SHOWN = 10  # images of each arm are kept for the figure
CHUNK = 64  # images that are drawn at a time
PACKAGE = Path(__file__).parents[1]
CODE = [*(PACKAGE / f"{name}.py" for name in (
    "diffusion", "words", "unet", "controlnet", "conditions", "training", "muon", "sampling",
    "evaluation", "experiments/lab")), *sorted(PACKAGE.glob("data/*.py"))]
STYLES = {  # of images (B, C, H, W); a base trained on in a style stands for a community model
    "": lambda x: x,
    "thick": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "blurred": lambda x: gaussian_blur(x, 1.0).clamp(-1, 1),
    "outlined": lambda x: (2 * F.max_pool2d(x, 3, stride=1, padding=1) - 2 * x - 1).clamp(-1, 1),
    "inverted": lambda x: -x,
}


class PaperTrainer(Trainer):
    """Train as the paper does: AdamW for all weights, at a constant rate, without a warm-up.

    Muon's step has the same size whatever the gradient's, which hides how control takes hold.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.recipe = dataclasses.replace(self.recipe, steps=10**9)  # so that the rate never falls
        self.steps_done = WARM_UP
        weights = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizers = {torch.optim.AdamW(weights, weight_decay=0.01): ADAMW_RATE}


class Lab:
    """A testbed: a shipped base, its images, and one way to train, draw and keep.

    base: a folder of WEIGHTS. optimizer: of arms that name none. settings: FULL or QUICK, as
    attributes: lab.images, lab.reference, ... unet: the base, frozen.
    """

    def __init__(self, base, optimizer, settings, out, data_dir, device):
        self.base, self.optimizer, self.settings = base, optimizer, settings
        self.out, self.data_dir, self.device = out, data_dir, device
        vars(self).update(settings)
        unet, self.checkpoint = load_base(WEIGHTS / base / "base.pt")
        self.unet = place(unet, device)
        self.dataset = self.checkpoint["dataset"]
        self.train_images, self.train_labels, _ = self._load("train")
        self.test_images, self.test_labels, self.test_captions = self._load("test")

    def _load(self, split):
        images, labels, texts = loaded(self.dataset, split, self.data_dir)
        return images.to(self.device), labels.to(self.device), texts

    @cached_property
    def train_prompts(self):
        return training_prompts(self._load("train")[2]).to(self.device)

    # -- Training ------------------------------------------------------------------------------

    def untrained(self, fit, seed):
        """Return the network of a Fit with the weights that its training starts from."""
        torch.manual_seed(seed)
        maps = CONDITIONS[fit.condition](self.test_images[:1]) if fit.condition else [[]]
        net = place(fit.net(self.unet, len(maps[0])), self.device)
        if fit.start:
            net.load_state_dict(self.network(fit.start, seed).state_dict())
        return net

    def trainer(self, fit, seed):
        """Return the Trainer of a Fit, at its first step, and the number of its steps."""
        optimizer = fit.optimizer or self.optimizer
        steps = round(fit.steps * self.settings[f"{optimizer}_steps"]
                      + fit.base_steps * self.base_steps * self.checkpoint["steps"])
        images, prompts = self.train_images, self.train_prompts
        if fit.images or fit.labels:
            chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            shown = torch.tensor(fit.labels or range(10))
            chosen = chosen[torch.isin(self.train_labels.cpu()[chosen], shown)]
            chosen = chosen[: fit.images or None].to(self.device)
            images, prompts = images[chosen], prompts[chosen]
        batch_size = max(2, int(fit.batch_size * self.batch))
        recipe = Recipe(steps, batch_size, fit.drop_prompts, seed, fit.rate)

        def eps_model_of(net, x_0, prompt):
            if not fit.condition:
                return controlled(net, prompt)
            unet, control = self.parts(net)
            condition = CONDITIONS[fit.condition](x_0)
            condition[: int(fit.drop_condition * len(x_0))] = 0
            eps_model = controlled(unet, prompt, [(control, condition, 1)])
            return fit.objective(eps_model, unet.schedule, x_0) if fit.objective else eps_model

        make = {"muon": Trainer, "adamw": PaperTrainer}[optimizer]
        return make(self.untrained(fit, seed), eps_model_of, STYLES[fit.style](images), prompts,
                    recipe, self.unet.schedule), steps

    def parts(self, net):
        """Return what draws, and what controls it: the base and `net`, unless it says otherwise."""
        return net.parts() if hasattr(net, "parts") else (self.unet, net)

    def network(self, fit, seed):
        """Return the network of a Fit or Shipped, frozen: loaded if it was trained before."""
        if isinstance(fit, Shipped):
            path = WEIGHTS / self.base / f"{fit.condition}.pt"
            return place(load_control(path, self.unet)[0], self.device)
        fit = dataclasses.replace(fit, optimizer=fit.optimizer or self.optimizer)
        net = self.untrained(fit, seed)
        net.trained_parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
        return self.kept(net, functools.partial(self.train, fit, seed), fit, seed)

    def train(self, fit, seed):
        """Return the network of a Fit, trained."""
        trainer, steps = self.trainer(fit, seed)
        for _ in range(steps):
            trainer.step()
        # The paper averages no weights; the library's recipe draws with the average.
        return trainer.net if fit.optimizer == "adamw" else trainer.average

    def classifier(self, style=""):
        """Return the classifier of the testbed's labels, in a style: loaded if it was trained."""
        width = 48 if self.base == "cifar10" else 16
        train = functools.partial(train_classifier, STYLES[style](self.train_images),
                                  self.train_labels, self.classifier_steps[self.base], width=width)
        net = Classifier(self.test_images.shape[1], 10, width).to(self.device)
        return self.kept(net, train, "classifier", style)

    def kept(self, net, train, *parts):
        """Return `net`, frozen, with the weights of train(), or of the file of an earlier run."""
        path = self.path("trained", "pt", *parts, unless=DRAWING)
        if not path.exists():
            save_checkpoint(path, {"kind": "experiment", "weights": train().state_dict()})
        net.load_state_dict(load_checkpoint(path, {"kind": "experiment"})["weights"])
        return freeze(net)

    # -- Drawing and measuring -----------------------------------------------------------------

    def prompts(self, kind, index):
        """Return the prompts of test images at an index (N,), as texts; kind: see `Arm`."""
        if callable(kind):
            return kind(self.test_labels[index].tolist())
        if kind == "caption":
            return [self.test_captions[i] for i in index.tolist()]
        if kind == "label":
            nouns = NOUNS.get(self.dataset.removeprefix("coloured-"), DIGITS)
            return [with_article(nouns[label]) for label in self.test_labels[index].tolist()]
        return [""] * len(index)

    def path(self, folder, kind, *parts, unless=()):
        """Return where to keep what depends on `parts` and on the settings, unless named."""
        settings = {name: value for name, value in self.settings.items() if name not in unless}
        return self.out / folder / f"{self.base}-{stamp(self.base, settings, parts)}.{kind}"

    def row(self, arm, measures, seed):
        """Measure an arm: {"values": {measure: list}, "samples", "seconds"}, kept in a file."""
        computes = [MEASURES[name].compute for name in measures]
        path = self.path("rows", "json", arm, self.optimizer * arm.trained, seed, computes)
        if not path.exists():
            start = time.perf_counter()
            drawn = Drawn(self, arm, seed)
            values = {name: compute(drawn) for name, compute in zip(measures, computes)}
            values = {name: [float(f"{number:.5g}") for number in numbers]
                      for name, numbers in values.items() if numbers is not None}
            row = {"values": values, "samples": encoded(drawn.images[:SHOWN]),
                   "seconds": round(time.perf_counter() - start, 1)}
            write_atomically(path, json.dumps(row).encode())
            print(f"{self.base} {self.optimizer}, {arm.title}, seed {seed}: {row['seconds']:.0f} s",
                  flush=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def measure(self, claim):
        """Measure all arms of a claim, each with as many seeds as it has trainings.

        Returns {"arms": {arm: {measure: table}}, "samples": {arm: images}, "seconds"}.
        """
        tables, samples, seconds = {}, {}, 0.0
        for name, arm in claim.arms.items():
            for seed in range(claim.trainings if arm.trained else 1):
                row = self.row(arm, claim.measured, seed)
                seconds += row["seconds"]
                samples.setdefault(name, row["samples"])
                for measure, numbers in row["values"].items():
                    tables.setdefault(name, {}).setdefault(measure, []).append(numbers)
        return {"arms": tables, "samples": samples, "seconds": round(seconds)}


class Drawn:
    """An arm of one seed, at work: what it is given, its networks, and the images that it draws.

    Networks are trained and images drawn when a measure asks for them.
    """

    def __init__(self, lab, arm, seed):
        self.lab, self.arm, self.seed, self.memo = lab, arm, seed, {}
        shown = torch.isin(lab.test_labels.cpu(), torch.tensor(arm.labels or range(10)))
        index = shown.nonzero()[: lab.images, 0]
        others = torch.ones(len(shown), dtype=torch.bool)
        others[index] = False
        self.real = STYLES[arm.style](lab.test_images[index])
        self.reference = STYLES[arm.style](lab.test_images[others][: lab.reference])
        self.labels = lab.test_labels[index]
        self.captions = lab.prompts("caption", index)
        self.texts = lab.prompts(arm.prompt, index)
        self.prompt = tokenize(self.texts).to(lab.device)

    @cached_property
    def trained(self):
        """The networks of the arm: that of `unet`, if any, and those of the controls."""
        fits = [self.arm.unet] * bool(self.arm.unet) + [use.control for use in self.arm.controls]
        return [self.lab.network(fit, self.seed) for fit in fits]

    @cached_property
    def unet(self):
        if self.arm.unet:
            return self.trained[0]
        return self.lab.parts(self.trained[0])[0] if self.trained else self.lab.unet

    @cached_property
    def controls(self):
        found = []
        for use, net in zip(self.arm.controls, self.trained[-len(self.arm.controls):]):
            condition = CONDITIONS[use.control.condition](self.real)
            condition = use.change(condition) if use.change else condition
            found.append(Conditioning(self.lab.parts(net)[1], condition, use.scale, use.start,
                                      use.end))
        return found

    @cached_property
    def classifier(self):
        return self.lab.classifier(self.arm.style)

    @cached_property
    def images(self):
        """The images that the arm draws. Every arm and seed starts from the same noise."""
        return self.real if self.arm.real else self.draw(1000)

    def draw(self, noise_seed):
        """Draw an image for each of the test images' conditions and prompts."""
        x_T = seeded_noise(self.real.shape, noise_seed, self.lab.device)
        make = self.arm.eps_model or functools.partial(with_guidance, w=self.arm.guidance)
        images = []
        for start in range(0, len(x_T), CHUNK):
            part = slice(start, start + CHUNK)
            controls = [control._replace(condition=control.condition[part])
                        for control in self.controls]
            eps_model = make(self.unet, self.prompt[part], controls)
            images.append(sample_ddim(eps_model, self.unet.schedule, x_T[part],
                                      self.lab.sampling_steps))
        return torch.cat(images)


@functools.cache
def loaded(dataset, split, data_dir):
    """Return the images, labels and captions of a dataset, which several labs share."""
    return *load_dataset(dataset, split, data_dir), captions(dataset, split, data_dir)


def with_guidance(unet, prompt, controls, w):
    """Return the eps_model of the library: guidance strengthens the prompt, not the conditions."""
    without = controlled(unet, torch.zeros_like(prompt), controls)
    return guided(controlled(unet, prompt, controls), without, w)


def encoded(images):
    """Return images (N, C, H, W) as plain values, for JSON."""
    pixels = ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    return {"shape": list(pixels.shape), "pixels": base64.b64encode(pixels.numpy()).decode()}


# -- Stamps: what a file depends on ------------------------------------------------------------


def stamp(base, settings, parts):
    """Return a hash of a base's weights, settings, code, and declarations with their functions."""
    weights = [path.read_bytes() for path in sorted((WEIGHTS / base).glob("*.pt"))]
    modules = sorted(set(re.findall(rb"minicnet\.experiments\.(\w+)", pickle.dumps(parts))))
    # What a claim says and promises changes no measurement.
    files = [PACKAGE / "experiments" / f"{module.decode()}.py" for module in modules
             if module != b"claim"]
    text = re.sub(r" at 0x\w+", "", repr((settings, parts)))
    text = [text, *map(essence, CODE + files)]
    return hashlib.sha256(b"\n".join(weights + [part.encode() for part in text])).hexdigest()[:16]


@functools.cache
def essence(path):
    """Return a file's text without docstrings, comments, blank lines and its CLAIM."""
    text = path.read_text(encoding="utf-8")
    lines, dropped = text.splitlines(), set()
    for token in generate_tokens(io.StringIO(text).readline):
        row, column = token.start
        if token.type == COMMENT:
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        claim = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CLAIM"
        if docstring or claim:
            dropped.update(range(node.lineno, node.end_lineno + 1))
    kept = (line.rstrip() for i, line in enumerate(lines, 1) if i not in dropped)
    return "\n".join(filter(None, kept))


# -- The command line --------------------------------------------------------------------------


def what(claim):
    """Return all of a claim that decides what is measured."""
    return claim.arms, claim.trainings, [MEASURES[name].compute for name in claim.measured]


def measure(name, args):
    """Measure the claim of that name on its testbeds, and write its result and figure."""
    claim = importlib.import_module(f"minicnet.experiments.{name}").CLAIM
    device = pick_device(args.device)
    settings = QUICK if args.quick else FULL | {"images": claim.images}
    result = {"name": name, "rule": claim.rule, "date": datetime.date.today().isoformat(),
              "torch": torch.__version__, "device": str(device), "testbeds": {}}
    for base, optimizer in claim.testbeds[: 1 if args.deciding else None]:
        lab = Lab(base, optimizer, settings, args.out, args.data_dir, device)
        found = {**lab.measure(claim), "dataset": lab.dataset,
                 "stamp": stamp(base, settings, what(claim))}
        result["testbeds"][f"{base} {optimizer}"] = found
        save_figure((claim.picture or plots.usual)(claim, result), args.out / f"{name}.png")
        write_atomically(args.out / f"{name}.json", json.dumps(result).encode())
        verdict, outcomes = claim.judge(found["arms"])
        print(f"{name}, {base} {optimizer}: {verdict}")
        for outcome in outcomes:
            print(f"    {outcome.difference}, {outcome.why}: {outcome.test.text(claim.titles)}")


def parser(description):
    new = cli.parser(description)
    new.add_argument("--out", type=Path, help="default: runs/experiments, or ...-quick")
    new.add_argument("--data-dir", type=Path, default=Path("data"),
                     help="where datasets are, or are downloaded to")
    new.add_argument("--deciding", action="store_true",
                     help="measure on the testbed that decides, and on no other")
    new.add_argument("--quick", action="store_true", help="a smoke run: seconds, and no meaning")
    return new


def run(args, *names):
    """Measure claims in turn, as the command line says."""
    args.out = args.out or Path("runs/experiments-quick" if args.quick else "runs/experiments")
    for name in names:
        measure(name, args)


def main(name):
    """Run the command line of one claim."""
    module = importlib.import_module(f"minicnet.experiments.{name}")
    args = parser(module.__doc__).parse_args()
    cli.run(run, args, name, stopped="stopped: the same command goes on")
