"""Trains a small diffusion model on digits, then a ControlNet that makes it follow edges. From data to picture:

    python train_mnist_edges.py                     # MNIST, or drawn digits where it cannot be had
    python train_mnist_edges.py --quick             # the same path in a minute: a smoke run, the digits are poor
    python train_mnist_edges.py --dataset drawn     # digits that the program draws itself: nothing is downloaded
    python train_mnist_edges.py --resume            # go on with a run that was stopped
    torchrun --nproc_per_node=4 train_mnist_edges.py # four processes, on a GPU each where there are GPUs, share batches
    python train_mnist_edges.py --condition mask --base runs/mnist-edges/base.pt --out runs/mnist-mask
                                                    # another condition for the same base, which is not trained again

The run folder, --out, ends up with base.pt and control.pt to play with (python -m minicnet.sample), metrics.json,
samples.png and learning.png.
"""

import argparse
import datetime
import functools
import os
import sys
import time
from pathlib import Path

import torch

from minicnet.checkpoints import CheckpointError, fingerprint, load_base, open_run, save_checkpoint, write_json
from minicnet.conditions import CONDITIONS
from minicnet.controlnet import ControlNet, freeze
from minicnet.data import DATASETS, DataError, choose_dataset, load_dataset
from minicnet.diffusion import NoiseSchedule
from minicnet.evaluation import MEASURES, edge_f1, frechet_distance, heldout_loss, label_accuracy, train_classifier
from minicnet.figures import learning_curves, samples_sheet, save_figure
from minicnet.parallel import first_goes_first, process_group
from minicnet.report import TITLES, table
from minicnet.sample import generate
from minicnet.training import TrainingError, pick_device, positive, train, whole_number
from minicnet.unet import UNet

FULL = dict(base_steps=2600, control_steps=400, batch_size=16, classifier_steps=400, measure=400)
QUICK = dict(base_steps=60, control_steps=40, batch_size=16, classifier_steps=100, measure=64)
CIFAR10 = dict(base_steps=20_000, control_steps=4000, batch_size=128, classifier_steps=4000, measure=500)  # for a GPU
MODELS = {"cifar10": dict(channels=96, multipliers=(1, 2, 2), blocks=2)}  # for the others UNet's own settings do
FILES = ("base.pt", "control.pt", "metrics.json", "samples.png", "learning.png")
GUIDANCE = 2.0  # for all images that are measured or shown
VALIDATION = 5000  # training images kept back, to look at while training; the test set is for the end alone


def main(args):
    device = pick_device(args.device)
    with process_group(device):
        run(args, device)


def run(args, device):
    start = time.perf_counter()

    # 1. Data.
    with first_goes_first(device) as first:  # one process is the first and only one, unless torchrun started several
        dataset = choose_dataset(args.dataset, args.data_dir)
        images, labels = (x.to(device) for x in load_dataset(dataset, "train", args.data_dir))
        test_images, test_labels = (x[: args.measure].to(device) for x in load_dataset(dataset, "test", args.data_dir))
        if len(images) <= VALIDATION:
            raise DataError(f"{dataset} in {args.data_dir} has only {len(images)} images: more than {VALIDATION} are "
                            "needed")
        if args.base:
            unet, reused = load_base(args.base, image_shape=list(images.shape[1:]))
            if "training" in reused:
                raise CheckpointError(f"the training of {args.base} was stopped: --resume its run first")
            if args.resume and fingerprint(load_base(args.out / "base.pt")[0]) != fingerprint(unet):
                raise CheckpointError(f"{args.out} holds another base than {args.base}: choose another --out")
            unet = unet.to(device)
        previous = open_run(args.out, FILES, args.resume) if first else {}
    # 64 of those kept back are looked at; the rest only keeps the usual split of MNIST, 55,000 to 5,000.
    images, val_images = images[:-VALIDATION], images[-VALIDATION:][:64]
    labels, val_labels = labels[:-VALIDATION], labels[-VALIDATION:][:64]
    if dataset == "cifar10":  # what is seen in a mirror is of the same kind, which is not true of digits
        images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
    schedule = NoiseSchedule.cosine(1000).to(device)
    loading = time.perf_counter() - start
    print(f"{dataset}: {len(images)} images to train on, {device}")

    # 2. The base learns to draw what a label names: eps_theta(x_t, t, label).
    def base_eps(unet, x_0, label):
        return lambda x_t, t: unet(x_t, t, label)

    def look_at_base(unet):
        return {"heldout_loss": heldout_loss(base_eps(unet, val_images, val_labels), schedule, val_images)}

    torch.manual_seed(args.seed)
    if args.base is None:
        unet = UNet(in_channels=images.shape[1], **MODELS.get(dataset, {})).to(device)
    settings = dict(batch_size=args.batch_size, learning_rate=2e-3, seed=args.seed, null_label=unet.null_label,
                    resume=args.resume)
    if args.base is None:
        about = dict(kind="base", dataset=dataset, image_shape=list(images.shape[1:]), schedule=["cosine", 1000],
                     model=unet.settings)
        base_history, base_seconds = train(
            unet, base_eps, schedule, images, labels, steps=args.base_steps, drop_labels=0.1,
            path=args.out / "base.pt", about=about, evaluate=look_at_base,
            evaluate_every=max(10, args.base_steps // 13), **settings)
    else:
        base_history, base_seconds = reused["history"], 0.0
        if first:
            save_checkpoint(args.out / "base.pt", reused)
    seconds = {"base": base_seconds or previous.get("base", 0.0)}
    if base_seconds and first:
        write_json(args.out / "metrics.json", {"seconds": seconds})

    # 3. It is locked. A copy of its encoder learns to read edges, and speaks to it through zero convolutions alone.
    freeze(unet)
    condition_of, fidelity = CONDITIONS[args.condition], MEASURES[args.condition]  # for edges: canny and edge_f1
    measure = fidelity.__name__
    val_condition, val_noise = condition_of(val_images), seeded_noise(val_images, args.seed)
    control_net = ControlNet(unet, condition_channels=val_condition.shape[1]).to(device)

    def control_eps(control_net, x_0, label, condition=None):
        condition = condition_of(x_0) if condition is None else condition
        return lambda x_t, t: unet(x_t, t, label, control=control_net(x_t, t, label, condition))

    def look_at_control(control_net):
        right = control_eps(control_net, None, val_labels, val_condition)
        wrong = control_eps(control_net, None, val_labels, val_condition.roll(1, 0))
        controls = [(control_net, val_condition[:16], 1)]
        drawn = generate(unet, schedule, val_labels[:16], val_noise[:16], controls, steps=10)
        return {"heldout_loss": heldout_loss(right, schedule, val_images),
                "heldout_loss_shuffled": heldout_loss(wrong, schedule, val_images),
                measure: fidelity(drawn, val_condition[:16])}

    about = dict(kind="control", dataset=dataset, base=fingerprint(unet), condition=args.condition,
                 condition_channels=val_condition.shape[1])
    control_history, control_seconds = train(
        control_net, control_eps, schedule, images, labels, steps=args.control_steps, drop_labels=0.5,
        path=args.out / "control.pt", about=about, evaluate=look_at_control,
        evaluate_every=max(10, args.control_steps // 16), **settings)
    freeze(control_net)
    if not first:
        return
    seconds["control"] = control_seconds or previous.get("control", 0.0)
    if control_seconds:
        write_json(args.out / "metrics.json", {"seconds": seconds})

    # 4. How good is it? On test images: the same labels and the same noise, without control and with it.
    print(f"measuring on {len(test_images)} test images")
    start = time.perf_counter()
    classifier = train_classifier(images, labels, steps=args.classifier_steps, seed=args.seed)
    condition, noise = condition_of(test_images), seeded_noise(test_images, args.seed)
    drawing = dict(guidance=GUIDANCE, progress=True)
    plain = generate(unet, schedule, test_labels, noise, **drawing)
    controlled = generate(unet, schedule, test_labels, noise, [(control_net, condition, 1)], **drawing)
    right, wrong = (control_eps(control_net, None, test_labels, c) for c in (condition, condition.roll(1, 0)))
    base = {
        "parameters": sum(p.numel() for p in unet.parameters()),
        "steps": base_history[-1]["step"],
        "heldout_loss": heldout_loss(base_eps(unet, None, test_labels), schedule, test_images),
        "label_accuracy": label_accuracy(classifier, plain, test_labels),
        "frechet": frechet_distance(classifier, plain, test_images)}
    measures = {measure: fidelity}
    if args.condition == "canny":
        measures["edge_f1_strict"] = functools.partial(edge_f1, tolerance=0)
    control = {
        "trainable_parameters": sum(p.numel() for p in control_net.parameters()),
        "steps": args.control_steps,
        "heldout_loss": heldout_loss(right, schedule, test_images),
        "heldout_loss_shuffled": heldout_loss(wrong, schedule, test_images),
        "label_accuracy": label_accuracy(classifier, controlled, test_labels),
        "frechet": frechet_distance(classifier, controlled, test_images)}
    for name, function in measures.items():
        control[name], control[f"{name}_floor"] = function(controlled, condition), function(plain, condition)
        control[f"{name}_ceiling"] = function(test_images, condition)
    real = images[: len(test_images)]
    seconds["total"] = loading + seconds["base"] + seconds["control"] + time.perf_counter() - start
    metrics = {
        "dataset": dataset, "base_dataset": reused["dataset"] if args.base else dataset,
        "condition": args.condition, "measure": measure,
        "device": str(device), "seed": args.seed, "torch": torch.__version__,
        "date": datetime.date.today().isoformat(), "images": len(test_images), "guidance": GUIDANCE,
        "seconds": seconds,
        "base": base, "control": control, "frechet_real": frechet_distance(classifier, real, test_images),
        "classifier_accuracy": label_accuracy(classifier, test_images, test_labels)}
    write_json(args.out / "metrics.json", metrics)

    # 5. What does it look like? Eight conditions, drawn four times each, and the same labels and noise without control.
    label, noise = test_labels[:8].repeat_interleave(4), seeded_noise(test_images[:8].repeat(4, 1, 1, 1), args.seed + 1)
    title = f"{dataset}, seed {args.seed}, guidance {GUIDANCE:g}: {TITLES[measure]} {control[measure]:.3f}"
    plain = generate(unet, schedule, label, noise, **drawing)
    controls = [(control_net, condition[:8].repeat_interleave(4, dim=0), 1)]
    controlled = generate(unet, schedule, label, noise, controls, **drawing)
    sheet = {args.condition: condition[:8, None] * 2 - 1, "with control": controlled.unflatten(0, (8, 4)),
             "real": test_images[:8, None], "the same noise without control": plain.unflatten(0, (8, 4))}
    save_figure(samples_sheet(sheet, title), args.out / "samples.png")
    save_figure(learning_curves(base_history, control_history, metrics, title), args.out / "learning.png")
    print(f"\n{table(metrics)}\n\nin {args.out}: {', '.join(FILES)}")


def seeded_noise(like, seed):
    """N(0, I) shaped like a batch of images, the same on every device."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.device)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="auto", choices=DATASETS)
    parser.add_argument("--condition", default="canny", choices=list(CONDITIONS), help="what the control is to follow")
    parser.add_argument("--base", type=Path, help="a trained base.pt, to be used instead of training one")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where datasets are, or are downloaded to")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist-edges"), help="the run folder")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--seed", type=whole_number, default=0)
    for name in ("base_steps", "control_steps", "batch_size"):
        parser.add_argument("--" + name.replace("_", "-"), type=positive,
                            help=f"default: {FULL[name]}, for CIFAR-10 {CIFAR10[name]}")
    parser.add_argument("--quick", action="store_true", help="a smoke run of the same path, with poor digits")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    args = parser.parse_args(argv)
    if args.base and args.base.resolve() == (args.out / "base.pt").resolve():
        parser.error("--base lies in the run folder --out: choose another --out for the second control")
    for name, value in (QUICK if args.quick else CIFAR10 if args.dataset == "cifar10" else FULL).items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    return args


if __name__ == "__main__":
    args = parse_arguments()
    if os.environ.get("RANK", "0") != "0":  # of torchrun's processes only the first speaks
        sys.stdout = open(os.devnull, "w")
    try:
        main(args)
    except (DataError, CheckpointError, TrainingError) as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # nobody reads on, as after `| head`: no traceback, and no second attempt at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        saved = (args.out / "base.pt").exists()
        sys.exit("\nstopped" + f": the same command with --resume goes on with {args.out}" * saved)
