"""What the experiments share: a locked base, one way to train, draw and measure, and rows that survive a stop.

An experiment is a module with a docstring, its CLAIM, `BASE` (which of the small weights that travel with the
repository it starts from), and three functions:

    run(lab)            measures, a row (a dict of numbers) at a time: lab.row(key, compute, *args)
    verdict(rows)       "reproduced", "not reproduced" or "mixed", and the sentence with the figures that says why
    figure(rows, lab)   the picture

`main(name)` makes of these a command that can be stopped and run again: rows and networks that are done are kept. They
carry a stamp of the weights, settings and code that made them (not of the machine: keep to one). What others made is
set aside, and made anew. Verdict and figure are made of the rows each time.
"""

import ast
import datetime
import hashlib
import importlib
import itertools
import json
import time
from functools import cached_property
from pathlib import Path

import torch

from minicnet import cli
from minicnet.checkpoints import WEIGHTS, CheckpointError, load_base, load_checkpoint, schedule_of, write_json
from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, controlled, freeze
from minicnet.data import captions, load_dataset
from minicnet.devices import pick_device
from minicnet.evaluation import edge_f1, frechet_distance, heldout_loss, label_accuracy, train_classifier
from minicnet.figures import save_figure
from minicnet.sampling import generate, seeded_noise
from minicnet.training import fit
from minicnet.words import DIGITS, tokenize, training_prompts

FULL = dict(seeds=[0, 1, 2], steps=300, batch_size=32, drop_prompts=0.5, looks=30, images=192, reference=2000,
            classifier_steps=500, sampling_steps=15)
QUICK = dict(seeds=[0, 1], steps=4, batch_size=4, drop_prompts=0.5, looks=2, images=8, reference=100,
             classifier_steps=10, sampling_steps=4)
BLOCK = 24  # images: for intervals, each measure is kept of every such part of the images
PACKAGE = Path(__file__).parents[1]
SOURCES = {f"minicnet.{path.stem}" if path.parent == PACKAGE else f"minicnet.experiments.{path.stem}":
           path.read_text(encoding="utf-8")  # read now, as it is what runs, whatever is edited meanwhile
           for path in sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("experiments/*.py")])}
SAYING = {"CLAIM", "WHY_HERE", "verdict", "figure"}  # what an experiment makes of its rows, and says of them
SHOWING = {"minicnet.cli", "minicnet.figures", "minicnet.experiments.judging",
           "minicnet.experiments.plots"}  # modules that no row depends on


class Lab:
    """An experiment at work. Its settings (FULL or QUICK) are attributes: lab.seeds, lab.steps, lab.images, ...

    unet: the base, frozen. train_images, train_labels, test_images, test_labels: on the device; the tests are few.
    train_prompts: whole captions and parts of them. test_prompts: they name the digit and nothing else.
    """

    def __init__(self, name, base, out, quick, device):
        self.name, self.base, self.out, self.device = name, base, out, device
        self.settings = QUICK if quick else FULL
        vars(self).update(self.settings)
        unet, checkpoint = load_base(WEIGHTS / base / "base.pt")
        self.unet, self.dataset = unet.to(device), checkpoint["dataset"]
        self.schedule = schedule_of(checkpoint).to(device)
        self.train_images, self.train_labels = (x.to(device) for x in load_dataset(self.dataset, "train"))
        self.train_prompts = training_prompts(captions(self.dataset, "train")).to(device)
        images, labels = (x[: self.reference].to(device) for x in load_dataset(self.dataset, "test"))
        self.reference_images, self.reference_labels = images, labels
        self.test_images, self.test_labels = images[: self.images], labels[: self.images]
        self.test_prompts = prompts_of(self.test_labels)
        self.file = out / name / "rows.json"
        self.stamp = stamp_of(base, self.settings, name)
        self.rows = self._earlier_rows()

    def _earlier_rows(self):
        try:
            earlier = json.loads(self.file.read_text())
            stamp, rows = earlier["stamp"], earlier["rows"]
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self.file} is damaged: delete it and run again") from error
        if stamp == self.stamp:
            return rows
        set_aside(self.file)
        return {}

    def row(self, key, compute, *args):
        """The dict of numbers that compute(*args) gives, or gave in an earlier run that was stopped."""
        if key not in self.rows:
            start = time.perf_counter()
            row = compute(*args)
            self.rows[key] = {**row, "seconds": round(time.perf_counter() - start, 1)}
            write_json(self.file, {"stamp": self.stamp, "rows": self.rows})
            print(f"{self.name}, {key}: " + ", ".join(f"{name} {value:.3f}" for name, value in row.items()
                                                      if isinstance(value, float)), flush=True)
        return self.rows[key]

    # -- training ------------------------------------------------------------------------------------------------------

    def trained(self, name, seed, make, eps_model, images=None, prompts=None, *, shared=None, **other):
        """The network `make()` after training with this seed, frozen, and its history; from a file if it was trained.

        name: of the file. eps_model(net, x_0, prompt) as for `train`. images, prompts: all of the training set unless
        given. shared: the module whose code alone makes this network, which then has one file for all experiments.
        other: what `fit` is to be told besides, or in place of the lab's steps, batch_size, drop_prompts and looks.
        """
        images = self.train_images if images is None else images
        prompts = self.train_prompts if prompts is None else prompts
        path = self.out / ("trained" if shared else self.name) / f"{self.base}-{name}-{seed}.pt"
        stamp = stamp_of(self.base, self.settings, shared) if shared else self.stamp
        about = dict(kind="experiment", stamp=short_hash(json.dumps(stamp)))
        if path.exists() and load_checkpoint(path, {"kind": "experiment"})["stamp"] != about["stamp"]:
            set_aside(path)
        torch.manual_seed(seed)
        net = make().to(self.device)
        usual = dict(steps=self.steps, batch_size=self.batch_size, drop_prompts=self.drop_prompts, looks=self.looks)
        history, _ = fit(net, eps_model, self.schedule, images, prompts, path=path, about=about, seed=seed, resume=True,
                         **{"look": lambda net: {}, **usual, **other})
        return freeze(net), history

    def trained_control(self, name, seed, make=None, condition_of=canny, **other):
        """A net that controls the base by condition_of(x_0), a ControlNet unless `make` makes another; its history."""
        return self.trained(name, seed, make or (lambda: ControlNet(self.unet)),
                            control_eps(lambda net: (self.unet, net), condition_of), **other)

    def edge_control(self, seed):
        """The ControlNet for edges that most experiments start from."""
        return self.trained_control("edges", seed, shared="lab")[0]

    # -- drawing and measuring -----------------------------------------------------------------------------------------

    def draw(self, prompt, controls=(), *, unet=None, seed=0, guidance=2.0):
        """Images of prompts (B, L) under triples (control_net, condition, scale). The noise depends on the seed alone.

        unet: what to put in the place of the base.
        """
        x_T = seeded_noise((len(prompt), *self.test_images.shape[1:]), 1000 + seed, self.device)
        return generate(unet or self.unet, self.schedule, prompt, x_T, controls, guidance=guidance,
                        steps=self.sampling_steps)

    @cached_property
    def classifier(self):
        """The small classifier that reads digits, trained on the training images when first asked for."""
        return train_classifier(self.train_images, self.train_labels, steps=self.classifier_steps)

    def score(self, images, labels, edges=None, reference=None):
        """How good images (B, C, H, W) are: label accuracy, Frechet distance, and edge-F1 if edges are given.

        All but the Frechet distance are there in `blocks`, too, for `interval`.
        """
        reference = self.reference_images if reference is None else reference

        def accuracy(images, labels):
            return label_accuracy(self.classifier, images, labels)

        scores = {"label_accuracy": accuracy(images, labels), "label_accuracy_blocks": blocks(accuracy, images, labels),
                  "frechet": frechet_distance(self.classifier, images, reference)}
        if edges is None:
            return scores
        return {"edge_f1": edge_f1(images, edges), "edge_f1_blocks": blocks(edge_f1, images, edges), **scores}

    def heldout(self, eps_model, images=None, prompt=None):
        """The loss of an eps_model(x_t, t, prompt) at fixed timesteps and noise: on the test images, unless given."""
        images, prompt = (self.test_images, self.test_prompts) if images is None else (images, prompt)
        return heldout_loss(lambda x_t, t: eps_model(x_t, t, prompt), self.schedule, images)


def prompts_of(labels):
    """Prompts that name the digits `labels` (B,) and nothing else, such as "a three": (B, L)."""
    return tokenize([f"a {DIGITS[label]}" for label in labels.tolist()]).to(labels.device)


def control_eps(parts, condition_of):
    """What to train a control with: eps_model(net, x_0, prompt), its condition made of x_0.

    parts(net): the base, and the net that controls it.
    """
    def eps_model(net, x_0, prompt):
        unet, control_net = parts(net)
        eps = controlled(unet, [(control_net, condition_of(x_0), 1)])
        return lambda x_t, t: eps(x_t, t, prompt)

    return eps_model


def blocks(measure, *tensors):
    """What measure(images, ...) says of each BLOCK of them, and of what belongs to them: a list of floats."""
    return [measure(*parts) for parts in zip(*(x.split(BLOCK) for x in tensors), strict=True)]


# -- Stamps: what made a file ------------------------------------------------------------------------------------------


def stamp_of(base, settings, name="lab"):
    """All that rows and networks depend on: weights, settings, and code, that of the experiment `name` among it."""
    return {"base": short_hash(*(path.read_bytes() for path in sorted((WEIGHTS / base).glob("*.pt")))),
            "settings": settings,
            "code": short_hash(*code_of(f"minicnet.experiments.{name}", {}).values())}


def code_of(module, found):
    """Adds to `found`, {module: code}, a module of minicnet and all that it imports of minicnet, and returns it.

    Comments, docstrings, and what only shows rows are no part of it.
    """
    tree = ast.parse(SOURCES[module])
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
            node.body = [part for part in node.body if not SAYING & _names(part)
                         and getattr(part, "module", "") not in SHOWING
                         and not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
    found[module] = ast.unparse(tree)
    for node in imports:
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
            if name in SOURCES and name not in found and name not in SHOWING:
                code_of(name, found)
    return found


def _names(statement):
    """What a definition or an assignment gives a name to."""
    return {getattr(target, "id", None) for target in getattr(statement, "targets", [])} | {
        getattr(statement, "name", None)}


def short_hash(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()[:16]


def set_aside(path):
    """Renames a file that something else made than what would make it now, and says so."""
    names = (path.with_name(f"{path.stem}-earlier-{i}{path.suffix}") for i in itertools.count(1))
    aside = path.rename(next(name for name in names if not name.exists()))
    print(f"{path} is of other code, settings or weights: it is {aside.name} now, and made anew", flush=True)


# -- The command line --------------------------------------------------------------------------------------------------


def experiment(name, out, quick, device):
    """Runs the experiment of that name, writes result.json and figure.png into out/name, and returns the result."""
    module = importlib.import_module(f"minicnet.experiments.{name}")
    lab = Lab(name, module.BASE, out, quick, device)
    module.run(lab)
    word, why = module.verdict(lab.rows)
    result = {
        "name": name, "claim": module.CLAIM, "verdict": word, "why": why, "dataset": lab.dataset,
        "seeds": lab.seeds, "images": lab.images, "device": str(device), "torch": torch.__version__,
        "date": datetime.date.today().isoformat(), "seconds": round(sum(row["seconds"] for row in lab.rows.values())),
        "stamp": lab.stamp, "rows": lab.rows}
    write_json(out / name / "result.json", result)
    save_figure(module.figure(lab.rows, lab), out / name / "figure.png")
    print(f"{name}: {word}. {why}\n(in {out / name}: result.json, figure.png)", flush=True)
    return result


def parser(description):
    new = cli.parser(description)
    new.add_argument("--out", type=Path, help="default: runs/experiments, or runs/experiments-quick")
    new.add_argument("--quick", action="store_true", help="a smoke run: seconds, and no meaning")
    return new


def run(args, *names):
    """Runs experiments in turn, as the command line says."""
    args.out = args.out or Path("runs/experiments-quick" if args.quick else "runs/experiments")
    for name in names:
        experiment(name, args.out, args.quick, pick_device(args.device))


def main(name):
    """The command line of one experiment."""
    args = parser(importlib.import_module(f"minicnet.experiments.{name}").__doc__).parse_args()
    cli.run(run, args, name, stopped="stopped: the same command goes on")
