"""Files that are never half written, and checkpoints that are safe to load and know their base.

A checkpoint is a dict of tensors and plain values. `load_checkpoint` unpickles nothing else, and
checks the types of the entries that programs read, so a stranger's file cannot run code.
"""

import contextlib
import hashlib
import io
import json
import os
import uuid
import zipfile
from pathlib import Path

import torch

from minicnet.conditions import CONDITIONS
from minicnet.controlnet import ControlNet, freeze
from minicnet.errors import UserError
from minicnet.unet import UNet
from minicnet.words import VOCABULARY

WEIGHTS = Path(__file__).parent / "weights"  # small trained networks that come with the repository
FORMAT = 2  # 1: before the network predicted v
TYPES = {  # of the entries that programs read
    "kind": str, "dataset": str, "condition": str, "base": str, "image_shape": list, "model": dict,
    "condition_channels": int, "weights": dict, "step": int, "history": list, "seconds": float,
    "training": dict,
}


class Checkpoint(dict):
    """The entries of a checkpoint. Looking up a missing one raises UserError."""

    def __missing__(self, name):
        raise UserError(f"{self.path} has no entry {name!r}, so it is not complete: train again")


def write_atomically(path, data):
    """Write bytes so that `path` is always either the old file or the whole new one.

    A link is followed. Raises UserError if the file cannot be written.
    """
    path = Path(os.path.realpath(path))
    # The name is unique, because another process or thread may write the same file.
    partial = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        kept = "the file that was there is kept" if os.path.exists(path) else "nothing was written"
        raise UserError(f"cannot write {str(path):.200} ({error.strerror}); {kept}: free some "
                        "space, or choose another --out") from error


def check_writable(path):
    """Raise UserError now, rather than after long work, if `path` cannot be written."""
    path = Path(os.path.realpath(path))
    if os.path.isdir(path):
        raise UserError(f"cannot write {path}: it is a folder, so choose another --out")
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # no user's file has such a name
    write_atomically(probe, b"")
    probe.unlink(missing_ok=True)


def read_file(path):
    """Read the bytes of a file that an earlier command wrote. Raises UserError if that fails."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(path):.200} ({error.strerror}): train first, or name "
                        "another file") from error


def write_json(path, value):
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and plain values. Raises UserError if that fails."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "vocabulary": list(VOCABULARY), **checkpoint}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path, header):
    """Read what `save_checkpoint` wrote. header: entries that it must have, "kind" among them.

    Raises UserError for a file that is missing or damaged, is of another format or kind, has
    entries of the wrong type or weights that are not finite, or was made with another header.
    """
    content = read_file(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # torch.load does not check for flipped bits, and a compressed archive could fill the
            # memory. torch.save compresses nothing, and marks nothing as a folder.
            foreign = any(part.compress_type or part.external_attr for part in archive.infolist())
            if foreign or archive.testzip():
                raise zipfile.BadZipFile
        checkpoint = Checkpoint(
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{path} is damaged, or is no checkpoint of minicnet: move it away, and "
                        "train again") from error
    checkpoint.path = path
    if checkpoint.get("kind") != header["kind"]:
        raise UserError(f"{path} is no checkpoint of a {header['kind']}: name another file")
    version = checkpoint.get("format"), checkpoint.get("vocabulary")
    if repr(version) != repr((FORMAT, list(VOCABULARY))):  # a tensor cannot be compared by !=
        raise UserError(f"{path} was made by another version of minicnet, which this one cannot "
                        "read: train again")
    for name, kind in TYPES.items():
        if name in checkpoint and not isinstance(checkpoint[name], kind):
            raise UserError(f"{path} is damaged: {name!r} is not a {kind.__name__}; train again")
    if "condition" in checkpoint and checkpoint["condition"] not in CONDITIONS:
        raise UserError(f"{path} is for an unknown condition, {checkpoint['condition']!r:.60}: the "
                        f"conditions are {', '.join(CONDITIONS)}")
    if not _all_finite(checkpoint["weights"]):
        raise UserError(f"{path} holds weights that are not finite numbers: train again")
    for name, value in header.items():
        found, wanted = repr(checkpoint[name]), repr(value)
        if found != wanted:
            raise UserError(f"{path} was made with {name} {found:.60} and not {wanted:.60}: keep "
                            "to the settings and the data of its run, or choose another --out")
    return checkpoint


def _all_finite(weights):
    """Return whether every value of a dict is a tensor of finite numbers."""
    try:
        return all(weight.isfinite().all() for weight in weights.values())
    except (AttributeError, RuntimeError):  # no tensor, or one without plain memory
        return False


def load_base(path, image_shape=None):
    """Load a base. Returns the frozen UNet, and its checkpoint.

    image_shape: the [C, H, W] that its images must have; None for any. Raises UserError.
    """
    header = {"kind": "base"}
    if image_shape:
        header["image_shape"] = list(image_shape)
    checkpoint = load_checkpoint(path, header)
    net = _load_weights(lambda: UNet(**checkpoint["model"]), checkpoint)
    shape = checkpoint["image_shape"]
    sides_fit = len(shape) == 3 and all(isinstance(side, int) and 0 < side <= 256 for side in shape)
    if not sides_fit or shape[0] != net.settings["in_channels"]:
        raise UserError(f"{path} names no possible image_shape but {shape!r:.60}: train again")
    if "history" in checkpoint and not _is_log(checkpoint["history"]):
        raise UserError(f"{path} is damaged: 'history' is no log of its training; train again")
    return net, checkpoint


def _is_log(history):
    """Return whether a list is the log of a base's training: dicts of finite numbers."""
    return history != [] and all(
        isinstance(entry, dict) and {"step", "heldout_loss"} <= entry.keys()
        and all(isinstance(entry[name], (int, float)) and abs(entry[name]) < 1e30
                for name in ("step", "heldout_loss"))
        for entry in history)


def load_control(path, unet, force=False):
    """Load the ControlNet of a base. Returns the frozen net, and its checkpoint.

    force: accept a control that was trained for another base. Raises UserError.
    """
    checkpoint = load_checkpoint(path, {"kind": "control"})
    if checkpoint["base"] != fingerprint(unet.state_dict()) and not force:
        raise UserError(f"{path} was trained for another base: use the base.pt beside it, or force "
                        "it (--force, force=True) as an experiment")
    channels = checkpoint["condition_channels"]
    return _load_weights(lambda: ControlNet(unet, channels), checkpoint), checkpoint


def _load_weights(make, checkpoint):
    """Return the network that `make` returns, frozen, with the checkpoint's weights."""
    try:
        net = make()
        net.load_state_dict(checkpoint["weights"])
    except Exception as error:  # a stranger's settings may raise anything
        reason = str(error).rpartition("\n")[2].strip()  # because torch writes a line per weight
        raise UserError(f"{checkpoint.path} does not fit its network ({reason:.200}): train "
                        "again") from error
    return freeze(net)


def fingerprint(tensors):
    """Return a short hash of a dict of tensors: equal only if all are, to the last bit."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
