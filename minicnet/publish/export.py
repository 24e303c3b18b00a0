"""Make the small weights that come with the repository out of runs with one base:

    python train_mnist_edges.py --dataset coloured-drawn --out runs/edges
    python train_mnist_edges.py --dataset coloured-drawn --condition colour \\
                                --base runs/edges/base.pt --out runs/colour
    python -m minicnet.publish.export minicnet/weights/coloured runs/edges runs/colour

The folder then holds base.pt, and for each run its control, named after the condition (canny.pt),
and the run's metrics (canny.json). Weights are rounded to half precision.
"""

from pathlib import Path

from minicnet import cli
from minicnet.checkpoints import (
    fingerprint,
    load_base,
    load_control,
    read_file,
    save_checkpoint,
    write_atomically,
)
from minicnet.errors import UserError


def export(folder, runs):
    """Write the base of the first run, and the control of each run, into a folder.

    Raises UserError, before anything is written, if a run is not finished or has another base, if
    two runs have the same condition, or if the folder is a run or holds a control of another base.
    """
    unet, base = load_base(runs[0] / "base.pt")
    controls, metrics = {}, {}
    for run in runs:
        _, control = load_control(run / "control.pt", unet)
        if "training" in {**base, **control} or not (run / "metrics.json").exists():
            raise UserError(f"the run in {run} is not finished: --resume it first")
        if control["condition"] in controls:
            raise UserError(f"two runs have the condition {control['condition']}: export one")
        controls[control["condition"]] = control
        metrics[control["condition"]] = read_file(run / "metrics.json")
    if (folder / "control.pt").exists():
        raise UserError(f"{folder} holds control.pt, so it is a run and would be overwritten: name "
                        "the folder for the weights first, then the runs")
    for path in folder.glob("*.pt"):
        if path.stem not in ("base", *controls):
            raise UserError(f"{path} would be left without its base: export its run, too, or "
                            "delete it")

    for checkpoint in (base, *controls.values()):
        checkpoint["weights"] = {
            name: weight.half() for name, weight in checkpoint["weights"].items()}
    unet.load_state_dict(base["weights"])
    save_checkpoint(folder / "base.pt", base)
    for condition, control in controls.items():
        control["base"] = fingerprint(unet.state_dict())  # of the rounded base
        save_checkpoint(folder / f"{condition}.pt", control)
        write_atomically(folder / f"{condition}.json", metrics[condition])


def main():
    parser = cli.parser(__doc__, device=False)
    parser.add_argument("folder", type=Path, help="where to write, such as minicnet/weights/digits")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with the same base")
    args = parser.parse_args()
    export(args.folder, args.runs)


if __name__ == "__main__":
    cli.run(main)
