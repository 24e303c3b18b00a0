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

import datetime
import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from minicnet import cli
from minicnet.adherence import prompt_accuracy
from minicnet.checkpoints import CheckpointError, fingerprint, load_base, save_checkpoint, schedule_of, write_json
from minicnet.conditions import CONDITIONS
from minicnet.controlnet import ControlNet, controlled, freeze
from minicnet.data import DATASETS, DataError, captions, choose_dataset, load_dataset
from minicnet.devices import join_processes, pick_device
from minicnet.diffusion import NoiseSchedule
from minicnet.evaluation import MEASURES, edge_f1, frechet_distance, heldout_loss, train_classifier
from minicnet.figures import learning_curves, samples_sheet, save_figure
from minicnet.report import TITLES, table
from minicnet.runs import open_run
from minicnet.sampling import generate, seeded_noise
from minicnet.training import fit
from minicnet.unet import UNet
from minicnet.words import VOCABULARY, tokenize, training_prompts

# t_power: of the base's training (`draw_batch`). scale: strength of the control when it is measured and shown.
FULL = dict(base_steps=1300, control_steps=350, batch_size=32, t_power=0.5, scale=1.0, measured=400,
            classifier_steps=400, classifier_width=16)
QUICK = dict(base_steps=30, control_steps=20, batch_size=32, t_power=0.5, scale=1.0, measured=64,
             classifier_steps=100, classifier_width=16)
CIFAR10 = dict(base_steps=10_000, control_steps=3000, batch_size=64, t_power=1, scale=1.5, measured=2000,
               classifier_steps=4000, classifier_width=48)
MODELS = {"cifar10": dict(channels=40, multipliers=(1, 2, 2))}  # for the others UNet's own settings do
FILES = ("base.pt", "control.pt", "metrics.json", "samples.png", "learning.png")
VALIDATION = 5000  # training images kept back, to look at while training; the test set is for the end alone


def main(args):
    start = time.perf_counter()
    device = pick_device(args.device)
    with join_processes(device) as first:  # of those that torchrun started; only the first writes
        data = load(args, device)
        if args.base:  # a wrong one is refused here, before an earlier run is moved aside
            read_base(args, data)
        if first:
            open_run(args.out, FILES, args.resume)
    loading = time.perf_counter() - start
    base = train_base(args, data, first)
    control = train_control(args, data, base)
    if first:
        start = time.perf_counter()
        metrics = measure(args, data, base, control)
        total = loading + base.seconds + control.seconds + time.perf_counter() - start
        metrics["seconds"] = {"base": base.seconds, "control": control.seconds, "total": total}
        write_json(args.out / "metrics.json", metrics)
        draw(args, data, base, control, metrics)
        print(f"\n{table(metrics)}\n\nin {args.out}: {', '.join(FILES)}")


def load(args, device):
    """Images and prompts to train on, validation images to look at meanwhile, test images for the end alone."""
    dataset = choose_dataset(args.dataset, args.data_dir)
    images, labels = (x.to(device) for x in load_dataset(dataset, "train", args.data_dir))
    if len(images) <= VALIDATION:
        raise DataError(f"{dataset} in {args.data_dir} has only {len(images)} images: more than {VALIDATION} are "
                        "needed")
    prompts = training_prompts(captions(dataset, "train", args.data_dir)).to(device)
    test_images = load_dataset(dataset, "test", args.data_dir)[0][: args.measured].to(device)
    test_captions = captions(dataset, "test", args.data_dir)[: args.measured]
    print(f"{dataset}: {len(images) - VALIDATION} images to train on, {device}")
    data = SimpleNamespace(
        dataset=dataset, images=images[:-VALIDATION], labels=labels[:-VALIDATION], prompts=prompts[:-VALIDATION],
        val_images=images[-VALIDATION:], val_prompts=prompts[-VALIDATION:, 0], test_images=test_images,
        test_captions=test_captions, test_prompts=tokenize(test_captions).to(device))
    if dataset == "cifar10":  # what is seen in a mirror is of the same kind, which is not true of digits
        data.images = torch.cat([data.images, data.images.flip(3)])
        data.labels, data.prompts = data.labels.repeat(2), data.prompts.repeat(2, 1, 1)
    return data


def train_base(args, data, first):
    """The base learns to draw what a prompt says: eps_theta(x_t, t, c_t). -> unet (frozen), schedule, history, ..."""
    shape, few, few_prompts = list(data.images.shape[1:]), data.val_images[:64], data.val_prompts[:64]
    if args.base:
        return copy_base(args, data, first)
    schedule = NoiseSchedule.cosine(1000).to(few.device)

    def eps_model(unet, x_0, prompt):
        return eps_given(prompt, unet)

    def look(unet):
        return {"heldout_loss": heldout_loss(eps_model(unet, few, few_prompts), schedule, few)}

    torch.manual_seed(args.seed)
    unet = UNet(in_channels=shape[0], **MODELS.get(data.dataset, {})).to(few.device)
    about = dict(kind="base", dataset=data.dataset, image_shape=shape, schedule=["cosine", len(schedule)],
                 vocabulary=list(VOCABULARY), model=unet.settings)
    history, seconds = fit(
        unet, eps_model, schedule, data.images, data.prompts, path=args.out / "base.pt", about=about, look=look,
        resume=args.resume, steps=args.base_steps, batch_size=args.batch_size, drop_prompts=0.1, seed=args.seed,
        t_power=args.t_power)
    return SimpleNamespace(unet=freeze(unet), schedule=schedule, history=history, seconds=seconds,
                           dataset=data.dataset)


def read_base(args, data):
    """The base of an earlier run, --base, if it is one for these images, and its checkpoint."""
    unet, checkpoint = load_base(args.base, image_shape=list(data.images.shape[1:]))
    if "training" in checkpoint:
        raise CheckpointError(f"the training of {args.base} was stopped: --resume its run first")
    return unet, checkpoint


def copy_base(args, data, first):
    """The base of an earlier run, copied into this one's folder. Returned as by `train_base`."""
    unet, checkpoint = read_base(args, data)
    device = data.images.device
    if args.resume and fingerprint(load_base(args.out / "base.pt")[0]) != fingerprint(unet):
        raise CheckpointError(f"the run in {args.out} has another base than {args.base}: choose another --out")
    if first:
        save_checkpoint(args.out / "base.pt", checkpoint)
    return SimpleNamespace(unet=unet.to(device), schedule=schedule_of(checkpoint).to(device),
                           history=checkpoint["history"], seconds=0.0, dataset=checkpoint["dataset"])


def train_control(args, data, base):
    """A copy of the locked base's encoder learns to read the condition. -> net (frozen), history, seconds"""
    condition_of, fidelity = CONDITIONS[args.condition], MEASURES[args.condition]  # for edges: canny and edge_f1
    few, few_prompts = data.val_images[:64], data.val_prompts[:64]
    condition, noise = condition_of(few), seeded_noise(few.shape, args.seed, few.device)

    def eps_model(net, x_0, prompt):
        return eps_given(prompt, base.unet, [(net, condition_of(x_0), 1)])

    def look(net):
        drawn = generate(base.unet, base.schedule, few_prompts[:16], noise[:16], [(net, condition[:16], 1)], steps=10)
        right, wrong = (heldout_loss(eps_model(net, x_0, few_prompts), base.schedule, few)
                        for x_0 in (few, few.roll(1, 0)))
        return {"heldout_loss": right, "heldout_loss_shuffled": wrong,
                fidelity.__name__: fidelity(drawn, condition[:16])}

    torch.manual_seed(args.seed)
    net = ControlNet(base.unet, condition_channels=condition.shape[1]).to(few.device)
    about = dict(kind="control", dataset=data.dataset, base=fingerprint(base.unet), condition=args.condition,
                 condition_channels=condition.shape[1])
    history, seconds = fit(
        net, eps_model, base.schedule, data.images, data.prompts, path=args.out / "control.pt", about=about, look=look,
        resume=args.resume, steps=args.control_steps, batch_size=args.batch_size, drop_prompts=0.5, seed=args.seed)
    return SimpleNamespace(net=freeze(net), history=history, seconds=seconds)


def eps_given(prompt, unet, controls=()):
    """The base, under its controls and for a prompt, as an `eps_model(x_t, t)`."""
    eps = controlled(unet, controls)
    return lambda x_t, t: eps(x_t, t, prompt)


def measure(args, data, base, control):
    """How good are they? On test images: the same prompts and noise, without control and with it. -> metrics"""
    images, prompt, count = data.test_images, data.test_prompts, len(data.test_images)
    print(f"measuring on {count} test images")
    classifier = train_classifier(data.images, data.labels, steps=args.classifier_steps, seed=args.seed,
                                  width=args.classifier_width)
    condition_of, fidelity = CONDITIONS[args.condition], MEASURES[args.condition]
    condition, noise = condition_of(images), seeded_noise(images.shape, args.seed, images.device)

    def scores(drawn, real=images):
        strict = {"edge_f1_strict": edge_f1(drawn, condition, tolerance=0)} if args.condition == "canny" else {}
        return {fidelity.__name__: fidelity(drawn, condition), **strict,
                **prompt_accuracy(drawn, data.test_captions, classifier),
                "frechet": frechet_distance(classifier, drawn, real)}

    controls, measured = {"base": [], "with control": [(control.net, condition, args.scale)]}, {}
    for name, w in itertools.product(controls, (1, 2)):
        drawn = generate(base.unet, base.schedule, prompt, noise, controls[name], guidance=w, progress=True)
        measured[f"{name}, guidance {w}"] = scores(drawn)
    measured["real images"] = scores(images, data.val_images[:count])  # unseen by networks and classifier
    losses = {name: heldout_loss(eps_given(prompt, base.unet, some), base.schedule, images) for name, some in
              (("base", []), ("control", [(control.net, condition, 1)]),
               ("shuffled", [(control.net, condition.roll(1, 0), 1)]))}
    return {
        "dataset": data.dataset, "condition": args.condition, "measure": fidelity.__name__,
        "base_dataset": base.dataset, "device": str(images.device), "seed": args.seed, "torch": torch.__version__,
        "date": datetime.date.today().isoformat(), "images": count, "scale": args.scale, "batch_size": args.batch_size,
        "base_steps": base.history[-1]["step"], "control_steps": args.control_steps, "measured": measured,
        "heldout_loss": losses}


def draw(args, data, base, control, metrics):
    """What does it look like? The conditions of the first test images, drawn four times each, and without control."""
    images, rows, guidance = data.test_images[:8], data.test_captions[:8], 2
    condition = CONDITIONS[args.condition](images)
    prompt = data.test_prompts[:8].repeat_interleave(4, dim=0)
    noise = seeded_noise((len(prompt), *images.shape[1:]), args.seed + 1, images.device)
    controls = [(control.net, condition.repeat_interleave(4, dim=0), args.scale)]
    plain, drawn = (generate(base.unet, base.schedule, prompt, noise, some, guidance=guidance).unflatten(0, (-1, 4))
                    for some in ([], controls))
    score = metrics["measured"][f"with control, guidance {guidance}"][metrics["measure"]]
    title = f"{data.dataset}, seed {args.seed}, guidance {guidance}: {TITLES[metrics['measure']]} {score:.3f}"
    sheet = {args.condition: condition[:, None] * 2 - 1, "with control": drawn, "real": images[:, None],
             "the same noise without control": plain}
    save_figure(samples_sheet(sheet, title, rows), args.out / "samples.png")
    save_figure(learning_curves(base.history, control.history, metrics, title), args.out / "learning.png")


def parse_arguments(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--dataset", default="auto", choices=DATASETS)
    parser.add_argument("--condition", default="canny", choices=list(CONDITIONS), help="what the control is to follow")
    parser.add_argument("--base", type=Path, help="a trained base.pt, to be used instead of training one")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where datasets are, or are downloaded to")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist-edges"), help="the run folder")
    parser.add_argument("--seed", type=cli.whole_number, default=0)
    for name, meaning in (("base_steps", "of training the base"), ("control_steps", "of training the control"),
                          ("batch_size", "images in a step"), ("measured", "test images to measure on")):
        parser.add_argument("--" + name.replace("_", "-"), type=cli.positive,
                            help=f"{meaning}; default: {FULL[name]}, for CIFAR-10 {CIFAR10[name]}")
    parser.add_argument("--scale", type=cli.finite, help="strength of the control in what is measured and drawn; "
                        f"default: {FULL['scale']}, for CIFAR-10 {CIFAR10['scale']}")
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
    cli.run(main, args, stopped=f"stopped: the same command with --resume goes on with {args.out}, if training "
                                "had begun")
