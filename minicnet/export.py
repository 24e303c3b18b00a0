"""Makes the small weights that travel with the repository: those of a run, in half precision, with its metrics.json.

    python train_mnist_edges.py --dataset drawn --out runs/drawn
    python -m minicnet.export runs/drawn minicnet/weights/digits

Notebooks load them with `load_base(WEIGHTS / "digits/base.pt")` and `load_control` (checkpoints.py).
"""

import shutil
import sys
from pathlib import Path

from minicnet.checkpoints import CheckpointError, fingerprint, load_base, load_control, save_checkpoint


def export(run, folder):
    """Writes base.pt and control.pt of the folder `run` to `folder`, in half precision. Raises CheckpointError."""
    run, folder = Path(run), Path(folder)
    unet, base = load_base(run / "base.pt")
    _, control = load_control(run / "control.pt", unet)
    for checkpoint in (base, control):
        checkpoint["weights"] = {name: weight.half() for name, weight in checkpoint["weights"].items()}
    unet.load_state_dict(base["weights"])
    control["base"] = fingerprint(unet)  # the control belongs to the rounded base from here on
    save_checkpoint(folder / "base.pt", base)
    save_checkpoint(folder / "control.pt", control)
    shutil.copy(run / "metrics.json", folder)


if __name__ == "__main__":
    try:
        export(*sys.argv[1:3]) if len(sys.argv) == 3 else sys.exit(f"usage: {__doc__}")
    except (CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")
