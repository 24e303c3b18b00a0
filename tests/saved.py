"""Files that tests read: small networks as checkpoints, and the files of MNIST."""

import gzip

import torch

from minicnet.checkpoints import fingerprint, save_checkpoint
from minicnet.controlnet import ControlNet
from minicnet.unet import UNet

MODELS = {  # for the playground: settings, size of the images, dataset, and controls
    "gray": (dict(channels=16), 28, "drawn", {"canny": 1}),
    "rgb": (dict(in_channels=3, channels=8, blocks=2), 28, "coloured-drawn",
            {"canny": 1, "colour": 3}),
    "things": (dict(in_channels=3, channels=8, multipliers=(1, 2, 2), patch=1), 16, "cifar10",
               {"colour": 3}),
}


def save_networks(folder, unet, nets, dataset="drawn", size=28):
    """Save a base as base.pt, and its ControlNets {condition: net} as CONDITION.pt, in a folder."""
    save_checkpoint(folder / "base.pt", {
        "kind": "base", "dataset": dataset, "seed": 0, "steps": 2, "model": unet.settings,
        "image_shape": [unet.settings["in_channels"], size, size], "weights": unet.state_dict()})
    for condition, net in nets.items():
        save_checkpoint(folder / f"{condition}.pt", {
            "kind": "control", "base": fingerprint(unet.state_dict()), "condition": condition,
            "condition_channels": net.condition_encoder.condition_channels,
            "weights": net.state_dict()})
    return folder


def save_models(root, randomised, models=MODELS):
    """Save models with random weights. Returns the folder of each."""
    folders = {}
    for name, (settings, size, dataset, conditions) in models.items():
        unet = randomised(UNet(**settings), std=0.1).half().float()
        nets = {condition: randomised(ControlNet(unet, depth), std=0.1, seed=seed).half().float()
                for seed, (condition, depth) in enumerate(conditions.items(), start=1)}
        folders[name] = save_networks(root / name, unet, nets, dataset, size)
    return folders


def change(path, **entries):
    """Replace entries of a checkpoint; an entry that becomes None is removed."""
    changed = {**torch.load(path, weights_only=True), **entries}
    torch.save({name: value for name, value in changed.items() if value is not None}, path)


def contents(folder):
    """Read all files in a folder: {path from the folder on: bytes}."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def idx(array):
    """Compose an IDX file from the description of the format, independently of the reader."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.numpy().tobytes()


def save_mnist(folder, images, labels, splits=("train", "t10k")):
    """Save the bytes of IDX files as MNIST's, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(content, 1))
    return folder
