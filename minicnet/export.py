"""Makes the small weights that travel with the repository: of runs with one base, in half precision.

    python train_mnist_edges.py --dataset coloured-drawn --out runs/edges
    python train_mnist_edges.py --dataset coloured-drawn --condition colour --base runs/edges/base.pt --out runs/colour
    python -m minicnet.export minicnet/weights/coloured runs/edges runs/colour

The folder then holds base.pt and, for each run, the control, named after its condition (canny.pt), with the metrics of
the run beside it (canny.json). `load_base` and `load_control` read them (checkpoints.py).
"""

import shutil
import sys
from pathlib import Path

from minicnet.checkpoints import CheckpointError, fingerprint, load_base, load_control, save_checkpoint


def export(folder, *runs):
    """Writes base.pt of the first run, and the control of each.

    Raises CheckpointError, also for a control of another base, and for a run that was stopped, and then writes nothing.
    """
    folder, runs = Path(folder), [Path(run) for run in runs]
    unet, base = load_base(runs[0] / "base.pt")
    controls = [load_control(run / "control.pt", unet)[1] for run in runs]
    for run, checkpoint in zip([runs[0], *runs], [base, *controls]):
        if "training" in checkpoint or not (run / "metrics.json").exists():
            raise CheckpointError(f"the run in {run} is not finished: --resume it first")
    for checkpoint in (base, *controls):
        checkpoint["weights"] = {name: weight.half() for name, weight in checkpoint["weights"].items()}
    unet.load_state_dict(base["weights"])
    save_checkpoint(folder / "base.pt", base)
    for run, control in zip(runs, controls):
        control["base"] = fingerprint(unet)  # the control belongs to the rounded base from here on
        save_checkpoint(folder / f"{control['condition']}.pt", control)
        shutil.copy(run / "metrics.json", folder / f"{control['condition']}.json")


if __name__ == "__main__":
    try:
        export(*sys.argv[1:]) if len(sys.argv) > 2 else sys.exit(f"usage: {__doc__}")
    except (CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")
