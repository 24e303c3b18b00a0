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
from minicnet.diffusion import NoiseSchedule
from minicnet.unet import UNet
from minicnet.words import VOCABULARY

WEIGHTS = Path(__file__).parent / "weights"  # small trained networks that travel with the repository (export.py)


class CheckpointError(RuntimeError):
    """A file cannot be written, or is not the checkpoint it should be. The message is one sentence for the user."""


class Checkpoint(dict):
    """What the file `path` holds. Asking for an entry that it lacks raises CheckpointError."""

    def __missing__(self, name):
        raise CheckpointError(f"{self.path} has no {name!r}: an earlier version of minicnet made it, so train again")


def write_atomically(path, data):
    """Writes bytes: at any moment `path` is the old file or the whole new one. Raises CheckpointError if it cannot."""
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
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def save_checkpoint(path, checkpoint):
    """Writes a dict of tensors and plain values. Raises CheckpointError if it cannot."""
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path, about):
    """Reads what `save_checkpoint` wrote. about: entries that it must have, "kind" among them.

    A stranger's file cannot run code: only tensors and plain values are read. Raises CheckpointError for a file that is
    missing, damaged, of another kind, or made with other settings.
    """
    try:
        file = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{error.strerror}: {path}: train first, or name another file") from error
    try:
        with zipfile.ZipFile(file) as archive:
            # torch.load would take flipped bits for weights, and for a folder whatever lies in memory. Nothing that
            # torch.save writes is compressed: a file that is may fill the memory.
            if any(part.compress_type or part.external_attr for part in archive.infolist()) or archive.testzip():
                raise zipfile.BadZipFile
        file.seek(0)
        checkpoint = Checkpoint(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # what a damaged file makes of its readers cannot be foreseen
        raise CheckpointError(f"{path} is damaged, or no checkpoint of minicnet: move it away and train") from error
    checkpoint.path = path
    if checkpoint.get("kind") != about["kind"]:
        raise CheckpointError(f"{path} is not a {about['kind']} checkpoint of minicnet: name another file")
    for there, here in itertools.zip_longest(checkpoint.get("vocabulary", VOCABULARY), VOCABULARY, fillvalue=""):
        if there != here:  # a word's place is its token
            raise CheckpointError(f"{path} has the word {there!r} where minicnet now has {here!r}: train again")
    differing = [f"{name} {checkpoint[name]} instead of {value}" for name, value in about.items()
                 if checkpoint[name] != value]
    if differing:
        raise CheckpointError(f"{path} was made with {', '.join(differing)}: "
                              "keep to the settings of its run, or choose another file or --out")
    return checkpoint


def load_base(path, image_shape=None):
    """-> frozen UNet, checkpoint. image_shape: the [C, H, W] that it must draw, if any. Raises CheckpointError."""
    about = {"kind": "base", "vocabulary": list(VOCABULARY), "image_shape": image_shape}
    checkpoint = load_checkpoint(path, {name: value for name, value in about.items() if value})
    return _trained(UNet, checkpoint["model"], checkpoint), checkpoint


def load_control(path, unet, force=False):
    """-> frozen ControlNet, checkpoint. force: also for a base that it was not made for. Raises CheckpointError."""
    checkpoint = load_checkpoint(path, {"kind": "control"})
    if checkpoint["base"] != fingerprint(unet) and not force:
        raise CheckpointError(f"{path} was trained for another base than the one it is to control: take the base.pt "
                              "that lies beside it, or force it (--force, force=True) for an experiment")
    settings = dict(unet=unet, condition_channels=checkpoint["condition_channels"])
    return _trained(ControlNet, settings, checkpoint), checkpoint


def _trained(network, settings, checkpoint):
    weights = checkpoint["weights"]
    try:
        net = network(**settings)
        net.load_state_dict(weights)
    except Exception as error:  # the settings may be nonsense, too
        reason = str(error).rpartition("\n")[2].strip()  # torch names one weight in each line
        raise CheckpointError(f"{checkpoint.path} does not fit its network: {reason:.200}") from error
    return freeze(net)


def schedule_of(checkpoint):
    """The NoiseSchedule that a base was trained with. Raises CheckpointError."""
    schedule = checkpoint["schedule"]
    try:
        name, T = schedule
        return getattr(NoiseSchedule, name)(T)
    except Exception as error:
        raise CheckpointError(f"{checkpoint.path} names no noise schedule but {schedule!r}: train again") from error


def fingerprint(module):
    """A short hash of a module's weights: two modules share it only if they are equal to the last bit."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
