"""Files that are never half written, and checkpoints that are safe to open and know which base they belong to."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import zipfile
from pathlib import Path

import torch

from minicnet.controlnet import ControlNet, freeze
from minicnet.unet import UNet

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCKS = {}  # the run folders that this process has locked: {(device, inode): descriptor, open until it ends}
WEIGHTS = Path(__file__).parent / "weights"  # small trained networks that travel with the repository (export.py)


class CheckpointError(RuntimeError):
    """A file cannot be written, or is not the checkpoint it should be. The message is one sentence for the user."""


def write_atomically(path, data):
    """Writes bytes to `path` so that there is always either the old file or the whole new one, even if power fails.

    Raises CheckpointError if it cannot be written (disk full, no permission); then the old file is still there.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        kept = "the one written before is kept" if path.exists() else "nothing was written"
        raise CheckpointError(f"cannot write {path}: {error.strerror}; {kept}, "
                              "so free some space or choose another --out") from error


def write_json(path, value):
    """Writes a dict of plain values, readable. Raises CheckpointError as `write_atomically` does."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def save_checkpoint(path, checkpoint):
    """Writes a dict of tensors and plain values. Raises CheckpointError as `write_atomically` does."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomically(path, buffer.getvalue())


def open_run(out, files, resume):
    """Makes the run folder `out`, locks it until this process ends, and moves an earlier run's files aside.

    Returns the seconds that the stages of a run to `resume` took. Raises CheckpointError for a folder that cannot be
    used, in which another run is going on, or that has no run to resume.
    """
    try:
        if resume and not (out / "base.pt").exists():
            raise CheckpointError(f"there is no run to resume in {out}: leave --resume out to start one")
        out.mkdir(parents=True, exist_ok=True)
        lock(out)
        if resume:
            return _seconds(out / "metrics.json")
        earlier = [out / name for name in files if (out / name).exists()]
        if earlier:
            aside = next(folder for i in itertools.count(1) if not (folder := out / f"earlier-{i}").exists())
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
            print(f"an earlier run was here: it is in {aside} now")
        return {}
    except OSError as error:
        raise CheckpointError(f"cannot use {out} as the run folder ({error.strerror}): choose another --out") from error


def lock(folder):
    """Keeps other processes out of a run folder until this one ends. Raises CheckpointError if another one is in it.

    The lock is on the folder itself: there is no lock file that could be left behind, and however a process ends, its
    locks end with it. Where the system or the disk has no such locks, nothing happens.
    """
    identity = os.stat(folder).st_dev, os.stat(folder).st_ino
    if fcntl is None or identity in LOCKS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CheckpointError(f"another run is going on in {folder}: let it end, or choose another --out") from None
    except OSError:  # as on some network disks
        pass
    LOCKS[identity] = descriptor


def _seconds(path):
    """The seconds that the stages of a run took, as its metrics.json says; of a run without one, {}."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    try:
        return {stage: float(seconds) for stage, seconds in json.loads(content)["seconds"].items()}
    except Exception as error:  # what a damaged file holds cannot be foreseen
        raise CheckpointError(f"{path} is damaged: delete it, and --resume goes on") from error


def load_checkpoint(path, about):
    """Reads what `save_checkpoint` wrote, on the CPU. about: the entries that it must have, "kind" among them.

    Only tensors and plain values are read (weights_only), so a file from a stranger cannot run code. Raises
    CheckpointError for a file that is missing, damaged, of another kind, or of a run with other settings.
    """
    try:
        content = io.BytesIO(Path(path).read_bytes())
        _check_sums(content)
        checkpoint = torch.load(content, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}: train first, or name another run folder") from error
    except Exception as error:  # what a damaged file makes of the reader cannot be foreseen
        raise CheckpointError(f"{path} is damaged, or no checkpoint of minicnet: move it away and train") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("kind") != about["kind"]:
        raise CheckpointError(f"{path} is not a {about['kind']} checkpoint of minicnet")
    differing = [f"{name} {checkpoint.get(name)} instead of {value}" for name, value in about.items()
                 if checkpoint.get(name) != value]
    if differing:
        raise CheckpointError(f"{path} was made with {', '.join(differing)}: "
                              "go on with the settings of that run, or choose another --out")
    return checkpoint


def _check_sums(file):
    """Raises BadZipFile if a part of a checkpoint, which is a zip archive, does not have its CRC-32.

    torch.load does not look, and would take flipped bits for weights. It also takes whatever lies in memory for those
    that are marked as a folder.
    """
    with zipfile.ZipFile(file) as archive:
        if sum(part.file_size for part in archive.infolist()) > file.getbuffer().nbytes:
            raise zipfile.BadZipFile("unpacks to more than it is: torch packs nothing")
        if archive.testzip() or any(part.external_attr & 0x10 for part in archive.infolist()):
            raise zipfile.BadZipFile("has a damaged part")
    file.seek(0)


def load_base(path, image_shape=None):
    """The frozen UNet of a base checkpoint, and the checkpoint. Raises CheckpointError.

    image_shape: [C, H, W] of the images that it must draw, if any will not do.
    """
    checkpoint = load_checkpoint(path, {"kind": "base"})
    if image_shape and checkpoint.get("image_shape") != image_shape:
        raise CheckpointError(f"{path} draws images of {checkpoint.get('image_shape')} instead of {image_shape}: "
                              "choose a base that was trained on images of that size")
    net = _with_weights(path, checkpoint, lambda: UNet(**checkpoint["model"]))
    return freeze(net), checkpoint


def load_control(path, unet, force=False):
    """The frozen ControlNet of a control checkpoint made for this unet, and the checkpoint. Raises CheckpointError.

    force: also for a unet of the same shape with other weights, to see how well a control transfers to another base.
    """
    checkpoint = load_checkpoint(path, {"kind": "control"})
    if checkpoint.get("base") != fingerprint(unet) and not force:
        raise CheckpointError(f"{path} was trained for another base than the one it is to control: take the base.pt "
                              "that lies beside it, or force it (--force, force=True) for an experiment")
    net = _with_weights(path, checkpoint, lambda: ControlNet(unet, checkpoint["condition_channels"]))
    return freeze(net), checkpoint


def _with_weights(path, checkpoint, make):
    where = ""
    try:
        net = make()
        asked, held = ({name: tuple(weight.shape) for name, weight in weights.items()}
                       for weights in (net.state_dict(), checkpoint["weights"]))
        for name in asked | held:
            if asked.get(name) != held.get(name):
                here, there = asked.get(name, "missing"), held.get(name, "missing")
                where = f": {name} is {there} in the file and {here} in the network"
                break
        net.load_state_dict(checkpoint["weights"])
    except Exception as error:  # as above: the description may be damaged, too
        raise CheckpointError(f"{path} does not hold the weights of the network it is for{where}") from error
    return net


def fingerprint(module):
    """A short hash of a module's weights: two modules share it only if they are equal to the last bit."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
