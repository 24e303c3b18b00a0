"""What the experiments share: a locked base, one way to train, draw and measure, and rows that survive a stop.

An experiment is a module with a docstring that ends in its claim, `BASE` (which of the small weights that travel with
the repository it starts from), and three functions:

    run(lab)            measures, a row (a dict of numbers) at a time: lab.row(key, compute, *args)
    verdict(rows)       "reproduced", "not reproduced" or "mixed", and the sentence with the figures that says why
    figure(rows, lab)   the picture

`main(module)` makes of these a command that can be stopped and run again: rows and networks that are done are kept.
"""

import argparse
import datetime
import importlib
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from minicnet.checkpoints import WEIGHTS, CheckpointError, fingerprint, load_base, write_json
from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze
from minicnet.data import DataError, load_dataset
from minicnet.diffusion import NoiseSchedule, guided, sample_ddim
from minicnet.evaluation import edge_f1, frechet_distance, heldout_loss, label_accuracy, train_classifier
from minicnet.figures import save_figure
from minicnet.training import TrainingError, pick_device, train

FULL = dict(seeds=[0, 1, 2], steps=400, batch_size=16, looks=40, images=128, reference=2000, classifier_steps=500)
QUICK = dict(seeds=[0, 1], steps=4, batch_size=4, looks=2, images=8, reference=100, classifier_steps=10)


class Lab:
    """An experiment at work. Its settings (FULL or QUICK) are attributes: lab.seeds, lab.steps, lab.images, ...

    unet: the base, frozen. train_images, train_labels, test_images, test_labels: on the device; the tests are few.
    """

    def __init__(self, name, base, out, quick, device):
        self.device, self.quick, self.name, self.base, self.out = device, quick, name, base, out
        self.settings = QUICK if quick else FULL
        vars(self).update(self.settings)
        unet, about = load_base(WEIGHTS / base / "base.pt")
        self.unet, self.dataset = unet.to(device), about["dataset"]
        schedule, T = about["schedule"]
        self.schedule = getattr(NoiseSchedule, schedule)(T).to(device)
        self.train_images, self.train_labels = (x.to(device) for x in load_dataset(self.dataset, "train"))
        images, labels = (x[: self.reference].to(device) for x in load_dataset(self.dataset, "test"))
        self.reference_images, self.reference_labels = images, labels
        self.test_images, self.test_labels = images[: self.images], labels[: self.images]
        self.file = out / name / "rows.json"
        self.stamp = {"base": fingerprint(unet), "settings": self.settings}
        self.rows = self._earlier_rows()
        self._classifier = None

    def _earlier_rows(self):
        try:
            earlier = json.loads(self.file.read_text())
            stamp, rows = earlier["stamp"], earlier["rows"]
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self.file} is damaged: delete it and run again") from error
        if stamp != self.stamp:
            raise CheckpointError(f"{self.file} was made with another base or other settings: choose another --out")
        return rows

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

    def trained(self, name, seed, make, eps_model, images=None, labels=None, *, drop_labels=0.5, look=None, steps=None):
        """The network `make()` after training with this seed, frozen, and its history; from a file if it was trained.

        name: of the file, which experiments share, so it must say what differs. eps_model(net, x_0, label) as for
        `train`. images, labels: all of the training set unless given. look(net): numbers to note now and then.
        """
        images = self.train_images if images is None else images
        labels = self.train_labels if labels is None else labels
        steps = steps or self.steps
        torch.manual_seed(seed)
        net = make().to(self.device)
        path = self.out / "trained" / f"{self.base}-{name}-{seed}.pt"
        about = dict(kind="experiment", name=name, base=self.stamp["base"], count=len(images))
        history, _ = train(
            net, eps_model, self.schedule, images, labels, steps=steps, batch_size=self.batch_size,
            learning_rate=2e-3, drop_labels=drop_labels, null_label=self.unet.null_label, seed=seed, about=about,
            path=path, evaluate=look or (lambda net: {"heldout_loss": 0.0}),
            evaluate_every=max(1, steps // self.looks), resume=True)
        return freeze(net), history

    def edge_control(self, seed):
        """The ControlNet for edges that most experiments start from."""
        return self.trained("edges", seed, lambda: ControlNet(self.unet), control_eps(self.unet, canny))[0]

    # -- drawing and measuring -----------------------------------------------------------------------------------------

    def draw(self, eps_model, label, *conditions, seed=0, guidance=2.0):
        """Images of labels (B,) under conditions. eps_model(x_t, t, label, *conditions); noise depends on the seed."""
        null = torch.full_like(label, self.unet.null_label)
        shape = len(label), *self.test_images.shape[1:]
        x_T = torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed)).to(self.device)
        eps_guided = guided(eps_model, (label, *conditions), (null, *conditions), guidance)
        return sample_ddim(eps_guided, self.schedule, x_T, steps=4 if self.quick else 20)

    @property
    def classifier(self):
        """The small classifier that reads digits, trained on the training images when first asked for."""
        if self._classifier is None:
            self._classifier = train_classifier(self.train_images, self.train_labels, steps=self.classifier_steps)
        return self._classifier

    def score(self, images, labels, edges=None, reference=None):
        """How good images (B, C, H, W) are: label accuracy, Frechet distance, and edge-F1 if edges are given."""
        reference = self.reference_images if reference is None else reference
        scores = {"label_accuracy": label_accuracy(self.classifier, images, labels),
                  "frechet": frechet_distance(self.classifier, images, reference)}
        return scores if edges is None else {"edge_f1": edge_f1(images, edges), **scores}

    def heldout(self, eps_model, images=None):
        """The held-out loss of an eps_model(x_t, t) on the test images, at fixed timesteps and noise."""
        return heldout_loss(eps_model, self.schedule, self.test_images if images is None else images)


def controlled(unet, *nets):
    """eps_model(x_t, t, label, *conditions) of a base under the sum of ControlNets, one for each condition."""
    def eps_model(x_t, t, label, *conditions):
        controls = [net(x_t, t, label, condition) for net, condition in zip(nets, conditions, strict=True)]
        return unet(x_t, t, label, control=sum(controls) if controls else None)

    return eps_model


def control_eps(unet, condition_of):
    """What to train a control with: eps_model(net, x_0, label), its condition made of x_0."""
    def eps_model(net, x_0, label):
        condition = condition_of(x_0)
        return lambda x_t, t: controlled(unet, net)(x_t, t, label, condition)

    return eps_model


def across_seeds(rows, start, name):
    """The values called `name` in all rows whose key is "start-SEED", in order."""
    return [row[name] for key, row in rows.items() if key.rpartition("-")[0] == start]


def mean(rows, start, name):
    return statistics.mean(across_seeds(rows, start, name))


def spread(rows, start, name, digits=3):
    """Mean and standard deviation over seeds, as text: "0.981 ± 0.002"."""
    values = across_seeds(rows, start, name)
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def clearly_better(ours, theirs, sign=1):
    """Is one variant better than another by more than chance would give? Two lists of values, seed by seed.

    Both drew from the same noise, so the differences count: their mean must be more than twice their standard deviation
    over the seeds. sign: -1 where less is better.
    """
    differences = [sign * (a - b) for a, b in zip(ours, theirs, strict=True)]
    return statistics.mean(differences) > 2 * statistics.stdev(differences)


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
        "rows": lab.rows}
    write_json(out / name / "result.json", result)
    save_figure(module.figure(lab.rows, lab), out / name / "figure.png")
    print(f"{name}: {word}. {why}\n(in {out / name}: result.json, figure.png)", flush=True)
    return result


def main(*names, description=None, **switches):
    """The command line of an experiment, or of several in turn. Returns its arguments, and their results.

    switches: more flags that are there or not, as readme="what --readme does".
    """
    description = description or importlib.import_module(f"minicnet.experiments.{names[0]}").__doc__
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: runs/experiments, or runs/experiments-quick")
    parser.add_argument("--quick", action="store_true", help="a smoke run: seconds, and no meaning")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    for name, help in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=help)
    args = parser.parse_args()
    args.out = args.out or Path("runs/experiments-quick" if args.quick else "runs/experiments")
    try:
        device = pick_device(args.device)
        return args, [experiment(name, args.out, args.quick, device) for name in names]
    except (CheckpointError, DataError, TrainingError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\nstopped: the same command goes on with {args.out}")
