"""Train a small diffusion model on digits, and then a ControlNet that makes it follow edges.

    python train_mnist_edges.py                      # MNIST, or drawn digits if it cannot be had
    python train_mnist_edges.py --quick              # the same path in a minute, with poor digits
    python train_mnist_edges.py --dataset drawn      # digits that the program draws by itself
    python train_mnist_edges.py --resume             # go on with a run that was stopped
    python train_mnist_edges.py --condition mask --base runs/mnist-edges/base.pt --out runs/mask
                                                     # another condition for a base that is trained
    torchrun --nproc_per_node=4 train_mnist_edges.py # four processes split each batch

The run folder, --out, then holds base.pt and control.pt (draw with python -m minicnet.sample),
metrics.json, samples.png and learning.png.
"""

import minicnet  # noqa: F401, I001  (before torch: it sets how OpenMP's threads wait)

import os
import time
from pathlib import Path
from typing import NamedTuple

import torch

from minicnet import cli
from minicnet.checkpoints import fingerprint, load_base, save_checkpoint, write_json
from minicnet.conditions import CONDITIONS
from minicnet.controlnet import ControlNet, controlled, freeze
from minicnet.data import DATASETS, choose_dataset
from minicnet.data.splits import load_splits
from minicnet.devices import join_processes, leave_processes, pick_device, place
from minicnet.errors import UserError
from minicnet.evaluation import MEASURES, heldout_loss, train_classifier
from minicnet.figures import learning_curves, samples_sheet, save_figure
from minicnet.results import TITLES, Results, score
from minicnet.runs import open_run
from minicnet.sampling import generate, seeded_noise
from minicnet.training import Recipe, Trainer, fit
from minicnet.unet import UNet

FOR_DIGITS = dict(base_steps=2200, control_steps=350, batch_size=64, measured=1000,
              model={}, classifier=dict(steps=400, width=16))
QUICK = dict(base_steps=30, control_steps=20, batch_size=32, measured=64,
             model={}, classifier=dict(steps=100, width=16))
FOR_CIFAR10 = dict(base_steps=18_000, control_steps=3000, batch_size=64, measured=2000,
               model=dict(channels=48, multipliers=(1, 2, 2)),
               classifier=dict(steps=4000, width=48))
FILES = ("base.pt", "control.pt", "metrics.json", "samples.png", "learning.png")


class Trained(NamedTuple):
    """A locked network, the log of its training, and how long that took."""

    net: torch.nn.Module
    history: list
    seconds: float
    dataset: str


def main(args):
    start = time.perf_counter()
    device = pick_device(args.device)
    with join_processes(device) as first:  # of torchrun's processes; only the first one writes
        name = choose_dataset(args.dataset, args.data_dir)
        train, validation, test = (
            split.to(device) for split in load_splits(name, args.data_dir))
        test = test.part(0, args.measured)  # used only for the final measurement
        print(f"{name}: {len(train.images)} images to train on, {device}")
        base_recipe = Recipe(args.base_steps, args.batch_size, drop_prompts=0.1, seed=args.seed)
        # Half of the prompts are dropped: a prompt often names what the edges show, and the control
        # has to learn to read the edges by themselves (section 3.3).
        control_recipe = Recipe(args.control_steps, args.batch_size, drop_prompts=0.5,
                                seed=args.seed)
        if args.base:  # a wrong one is refused before an earlier run is moved aside
            base, checkpoint = other_base(args, train.images)
        if first:
            open_run(args.out, FILES, args.resume)
    loading = time.perf_counter() - start
    if not args.base:
        base = train_base(name, train, validation, base_recipe, args)
    elif first:
        save_checkpoint(args.out / "base.pt", checkpoint)
    control = train_control(name, train, validation, base.net, control_recipe, args)
    if first:
        start = time.perf_counter()
        results = measure(name, train, validation, test, base, control, args)
        measuring = time.perf_counter() - start
        # Not the time since this program began, because an earlier one may have trained a part.
        results.seconds["total"] = loading + base.seconds + control.seconds + measuring
        write_json(args.out / "metrics.json", vars(results))
        draw(test, base, control, results, args)
        print(f"\n{results.as_table()}\n\nin {args.out}: {', '.join(FILES)}")
    leave_processes()


def train_base(name, train, validation, recipe, args):
    """Train the base, eps_theta(x_t, t, c_t), to follow prompts, and lock it."""
    images, prompt = validation.images[:64], validation.prompts[:64, 0]
    shape = list(images.shape[1:])
    torch.manual_seed(args.seed)
    unet = place(UNet(in_channels=shape[0], **args.model), images.device)

    def eps_model_of(unet, x_0, prompt):
        return controlled(unet, prompt)

    def evaluate(unet):
        return {"heldout_loss": heldout_loss(controlled(unet, prompt), unet.schedule, images)}

    trainer = Trainer(unet, eps_model_of, train.images, train.prompts, recipe, unet.schedule)
    header = dict(kind="base", dataset=name, image_shape=shape, model=unet.settings)
    history, seconds = fit(trainer, args.out / "base.pt", header, evaluate, resume=args.resume)
    return Trained(freeze(unet), history, seconds, name)


def other_base(args, images):
    """Load the base of an earlier run, --base, which must draw images of this shape.

    A resumed run keeps the base that is in its folder.
    """
    path = args.out / "base.pt" if args.resume else args.base
    unet, checkpoint = load_base(path, image_shape=images.shape[1:])
    if "training" in checkpoint:
        raise UserError(f"the training of {path} was stopped: --resume its run first")
    base = Trained(place(unet, images.device), checkpoint["history"], 0.0, checkpoint["dataset"])
    return base, checkpoint


def train_control(name, train, validation, unet, recipe, args):
    """Train a copy of the locked base's encoder, so that eps(x_t, t, c_t, c_f) follows c_f."""
    condition_of, measure_of = CONDITIONS[args.condition], MEASURES[args.condition]
    images, prompt = validation.images[:64], validation.prompts[:64, 0]
    condition = condition_of(images)
    noise = seeded_noise(images[:16].shape, args.seed, images.device)
    torch.manual_seed(args.seed)
    net = place(ControlNet(unet, condition_channels=condition.shape[1]), images.device)

    def eps_model_of(net, x_0, prompt):
        return controlled(unet, prompt, [(net, condition_of(x_0), 1)])

    def evaluate(net):  # if the shuffled loss is no higher, the control ignores its condition
        drawn = generate(unet, unet.schedule, prompt[:16], noise, [(net, condition[:16], 1)],
                         steps=10)
        right, shuffled = (
            heldout_loss(controlled(unet, prompt, [(net, given, 1)]), unet.schedule, images)
            for given in (condition, condition.roll(1, 0)))
        return {"heldout_loss": right, "heldout_loss_shuffled": shuffled,
                measure_of.__name__: measure_of(drawn, condition[:16])}

    trainer = Trainer(net, eps_model_of, train.images, train.prompts, recipe, unet.schedule)
    header = dict(kind="control", dataset=name, base=fingerprint(unet.state_dict()),
                  condition=args.condition, condition_channels=condition.shape[1])
    history, seconds = fit(trainer, args.out / "control.pt", header, evaluate, resume=args.resume)
    return Trained(freeze(net), history, seconds, name)


def measure(name, train, validation, test, base, control, args):
    """Measure on test images: the same prompts and noise, without control and with it."""
    images, prompt, count = test.images, test.prompts[:, 0], len(test.images)
    unet, schedule = base.net, base.net.schedule
    print(f"measuring on {count} test images")
    classifier = train_classifier(train.images, train.labels, seed=args.seed, **args.classifier)
    condition = CONDITIONS[args.condition](images)
    noise = seeded_noise(images.shape, args.seed, images.device)
    controls = [(control.net, condition, 1)]

    def scores(controls, w):
        drawn = generate(unet, schedule, prompt, noise, controls, guidance=w, progress=True)
        return score(drawn, args.condition, condition, test.captions, classifier, images)

    def loss(controls):
        return heldout_loss(controlled(unet, prompt, controls), schedule, images)

    return Results(
        dataset=name, condition=args.condition, base_dataset=base.dataset,
        device=str(images.device), seed=args.seed, torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"), images=count, batch_size=args.batch_size,
        base_steps=base.history[-1]["step"], control_steps=args.control_steps,
        base={w: scores([], w) for w in (1, 2)},
        control={w: scores(controls, w) for w in (1, 2)},
        real=score(images, args.condition, condition, test.captions, classifier,
                   validation.images[:count]),  # the networks have seen neither
        heldout_loss={"base": loss([]), "control": loss(controls),
                      "shuffled": loss([(control.net, condition.roll(1, 0), 1)])},
        seconds={"base": base.seconds, "control": control.seconds})


def draw(test, base, control, results, args):
    """Draw four images for each of the first conditions, and four from the same noise without."""
    images, rows = test.images[:8], test.captions[:8]
    condition = CONDITIONS[args.condition](images)
    prompt = test.prompts[:8, 0].repeat_interleave(4, dim=0)
    noise = seeded_noise((len(prompt), *images.shape[1:]), args.seed + 1, images.device)
    controls = [(control.net, condition.repeat_interleave(4, dim=0), 1)]
    drawn, without = (
        generate(base.net, base.net.schedule, prompt, noise, given, guidance=2)
        .unflatten(0, (-1, 4)) for given in (controls, []))
    columns = {args.condition: condition[:, None] * 2 - 1, "with control": drawn,
               "real": images[:, None], "same noise, without control": without}
    title = (f"{results.dataset}, seed {args.seed}, guidance 2: {TITLES[results.measure]} "
             f"{results.control[2][results.measure]:.3f}")
    save_figure(samples_sheet(columns, title, rows), args.out / "samples.png")
    save_figure(learning_curves(base.history, control.history, results, title),
                args.out / "learning.png")


def parse_arguments(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--dataset", default="auto", choices=DATASETS)
    parser.add_argument("--condition", default="canny", choices=list(CONDITIONS),
                        help="what the control follows")
    parser.add_argument("--base", type=Path, help="a trained base.pt, instead of training one")
    parser.add_argument("--data-dir", type=Path, default=Path("data"),
                        help="where datasets are, or are downloaded to")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist-edges"),
                        help="the run folder")
    parser.add_argument("--seed", type=cli.whole_number(0, 10**9), default=0)
    for name, bounds, meaning in (("base_steps", (1, 10**8), "training steps of the base"),
                                  ("control_steps", (1, 10**8), "training steps of the control"),
                                  ("batch_size", (1, 4096), "images in a training step"),
                                  ("measured", (2, 5000), "test images to measure on")):
        parser.add_argument("--" + name.replace("_", "-"), type=cli.whole_number(*bounds), help=(
            f"{meaning}; default {FOR_DIGITS[name]}, for CIFAR-10 {FOR_CIFAR10[name]}"))
    parser.add_argument("--quick", action="store_true",
                        help="a smoke run of the same path in a minute, with poor digits")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    args = parser.parse_args(argv)
    if args.base and os.path.realpath(args.base) == os.path.realpath(args.out / "base.pt"):
        parser.error("--base lies in the run folder --out: choose another --out")
    settings = QUICK if args.quick else FOR_CIFAR10 if args.dataset == "cifar10" else FOR_DIGITS
    parser.set_defaults(**settings)  # and what the command line gives takes their place
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(lambda: main(parse_arguments()),
            stopped="stopped: the same command with --resume goes on, if training had begun")
