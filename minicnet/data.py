"""MNIST, Fashion-MNIST, CIFAR-10, drawn and coloured digits as tensors, and what each image shows in words.

    images, labels = load_dataset("mnist", split="train", data_dir="data")  # (60000, 1, 28, 28) in [-1, 1], (60000,)
    prompts = captions("mnist", split="train", data_dir="data")  # 60,000 of them: "a five", "a zero", ...

Files in data/mnist, data/fashion-mnist or data/cifar10 are used as they are. What is missing is downloaded there.
Nothing from outside is trusted: downloads must match their md5, files their own headers, and nothing is unpickled.
"""

import contextlib
import gzip
import math
import os
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch

from minicnet.colours import choose_colours, colourise
from minicnet.digits import describe_digits, draw_digits
from minicnet.downloads import DOWNLOADS, LONGEST, DataError, check, download, in_a_line
from minicnet.words import CLOTHES, DIGITS, THINGS, with_article

DATASETS = ("auto", "mnist", "fashion-mnist", "cifar10", "drawn", "coloured", "coloured-mnist", "coloured-drawn")
NOUNS = {"mnist": DIGITS, "fashion-mnist": CLOTHES, "cifar10": THINGS}  # a word for each label
DRAWN, SEEDS = {"train": 60_000, "test": 10_000}, {"train": 0, "test": 1}
CIFAR10_BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then 32x32 reds, greens and blues
CIFAR10_LONGEST = 10_000 * CIFAR10_RECORD  # bytes of a batch
AUTO_SECONDS = 30  # seconds after which "auto" gives up fetching MNIST


def load_dataset(name, split="train", data_dir="data"):
    """Load the "train" or "test" split of one of DATASETS: images (N, C, H, W) float32 in [-1, 1], labels (N,) int64.

    Each call decides "auto" afresh: to load both splits, `choose_dataset` once before.
    Raises DataError for an unknown name, and if files are damaged or cannot be had; ValueError for another split.
    """
    gray, coloured, folder = resolve(name, split, data_dir)
    if gray == "drawn":
        images, labels = draw_digits(DRAWN[split], SEEDS[split])
    else:
        pixels, labels = read(gray, split, folder)
        images, labels = torch.tensor(pixels).float().div_(127.5).sub_(1), torch.tensor(labels).long()
    return (colourise(images, labels, SEEDS[split], train=split == "train")[0] if coloured else images), labels


def captions(name, split="train", data_dir="data"):
    """Say what each image of `load_dataset(name, split, data_dir)` shows: a list of N prompts, in the same order."""
    gray, coloured, folder = resolve(name, split, data_dir)
    if gray == "drawn":
        prompts, labels = describe_digits(DRAWN[split], SEEDS[split])
    else:
        labels = torch.tensor(read(gray, split, folder)[1]).long()
        prompts = [with_article(NOUNS[gray][label]) for label in labels.tolist()]
    return choose_colours(labels, SEEDS[split], train=split == "train")[0] if coloured else prompts


def resolve(name, split, data_dir):
    """Return the dataset without colours, whether it is to be coloured, and the folder of its files."""
    if split not in SEEDS:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    name = choose_dataset(name, data_dir)
    gray = name.removeprefix("coloured-")
    return gray, gray != name, Path(data_dir) / gray


def choose_dataset(name, data_dir="data"):
    """Return `name`; for "auto", "mnist" if it is there or comes within AUTO_SECONDS, else "drawn", with a loud line.

    "coloured" becomes "coloured-mnist" or "coloured-drawn" in the same way.
    """
    if name not in DATASETS:
        raise DataError(f"there is no dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if name == "coloured":
        return "coloured-" + choose_dataset("auto", data_dir)
    if name != "auto":
        return name
    try:
        deadline = time.monotonic() + AUTO_SECONDS
        for file in DOWNLOADS["mnist"][1]:
            find_idx("mnist", file, Path(data_dir) / "mnist", deadline)
        return "mnist"
    except DataError as error:
        line = f"THIS IS NOT MNIST: the program draws its own digits instead, because it {error}"
        print("", "#" * 100, line, "#" * 100, "", sep="\n", file=sys.stderr, flush=True)
        return "drawn"


# -- Reading -----------------------------------------------------------------------------------------------------------

def read(name, split, folder):
    """Read a split of a dataset that is not drawn: pixels (N, C, H, W) and labels (N,), both uint8."""
    if name == "cifar10":
        return read_cifar10(split, folder)
    start = "train" if split == "train" else "t10k"
    pixels = read_idx(find_idx(name, f"{start}-images-idx3-ubyte.gz", folder), (28, 28))
    labels = read_idx(path := find_idx(name, f"{start}-labels-idx1-ubyte.gz", folder), ())
    with reading(path):
        check(len(labels) == len(pixels), f"it holds {len(labels)} labels, but there are {len(pixels)} images")
        check(labels.max() <= 9, f"it holds the label {labels.max()}")
    return pixels[:, None], labels


def read_idx(path, item_shape):
    """Read an IDX file of bytes: (N, *item_shape) uint8.

    The header is 0, 0, 8 (unsigned bytes), the number of dimensions, then each dimension as a big-endian 32-bit number.
    """
    content = read_file(path)
    with reading(path):
        shape = (int.from_bytes(content[4:8], "big"), *item_shape)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        check(content.startswith(header) and shape[0] > 0, f"it does not begin as an IDX file of {item_shape} items")
        check(len(content) == len(header) + math.prod(shape), f"it does not hold the {shape[0]} items it announces")
        return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def read_cifar10(split, folder):
    """Read a split of CIFAR-10, the binary version: pixels (N, 3, 32, 32) and labels (N,), both uint8.

    Its batches lie in the folder, or in cifar-10-batches-bin/ there, or inside cifar-10-binary.tar.gz or .tar.xz.
    """
    names, file = CIFAR10_BATCHES[split], "cifar-10-binary.tar.gz"
    paths = [find(folder, name, f"cifar-10-batches-bin/{name}") for name in names]
    if all(paths):
        batches = {path: read_file(path) for path in paths}
    else:
        batches = read_archive(find(folder, file, "cifar-10-binary.tar.xz") or download("cifar10", file, folder), names)
    for path, batch in batches.items():
        with reading(path):
            check(batch and len(batch) % CIFAR10_RECORD == 0, f"it is not records of {CIFAR10_RECORD} bytes")
            check(max(batch[::CIFAR10_RECORD]) <= 9, f"it holds the label {max(batch[::CIFAR10_RECORD])}")
    records = np.frombuffer(b"".join(batches.values()), np.uint8).reshape(-1, CIFAR10_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def read_archive(path, names):
    """Read batches from a tar archive, wherever in it they lie: {path: bytes}. Nothing is written to disk."""
    found = {}
    with reading(path), tarfile.open(path) as archive:
        for member in archive:
            check(0 <= member.size <= CIFAR10_LONGEST, "a member is longer than a batch")
            name = member.name.split("/")[-1]
            if name in names and member.isfile():
                found[name] = archive.extractfile(member).read()
        while archive.fileobj.read(2**20):  # to the very end, where the checksum is
            pass
        for name in names:
            check(name in found, f"it holds no {name}, as the binary version does; the python version is a pickle")
    return {path / name: found[name] for name in names}  # in the order of their names


def read_file(path):
    """Read a file, unpacked if its name ends in .gz; of an endless one, LONGEST bytes."""
    with reading(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        return file.read(LONGEST)


@contextlib.contextmanager
def reading(path):
    """Turn whatever happens while a file is read into a DataError: what damage makes of a reader cannot be foreseen."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{path} cannot be read ({in_a_line(error)}): delete it and run again") from None


# -- Finding files -----------------------------------------------------------------------------------------------------

def find(folder, *names):
    """Return the path of the first of these that is there, or None."""
    return next((folder / name for name in names if os.path.exists(folder / name)), None)


def find_idx(name, file, folder, deadline=math.inf):
    """Return the path of an IDX file, packed or not, under either of its usual names; download it if there is none."""
    plain = file.removesuffix(".gz")
    known = (plain, file, plain.replace("-idx", ".idx"), file.replace("-idx", ".idx"))
    return find(folder, *known) or download(name, file, folder, deadline)
