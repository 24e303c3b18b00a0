"""MNIST, Fashion-MNIST, CIFAR-10, drawn and coloured digits: images, labels and captions.

    images, labels = load_dataset("mnist", "train", "data")  # (60000, 1, 28, 28), (60000,)
    prompts = captions("mnist", "train", "data")  # "a five", "a zero", ...

We read the files in data/mnist, data/fashion-mnist or data/cifar10, and download the missing ones.
Nothing from outside is trusted: a download must match its md5, a file must match its own header,
and nothing is unpickled.
"""

import contextlib
import functools
import gzip
import sys
import tarfile
import time
from pathlib import Path

import torch

from minicnet.data.colours import choose_colours, colourise
from minicnet.data.digits import describe_digits, draw_digits
from minicnet.data.downloads import DOWNLOADS, MAX_BYTES, find_or_download, one_line, require
from minicnet.data.prompts import with_article
from minicnet.errors import UserError
from minicnet.words import CLOTHES, DIGITS, THINGS

DATASETS = ("auto", "mnist", "fashion-mnist", "cifar10", "drawn",
            "coloured", "coloured-mnist", "coloured-drawn")
NOUNS = {"mnist": DIGITS, "fashion-mnist": CLOTHES, "cifar10": THINGS}  # a word for each label
DRAWN, SEEDS = {"train": 60_000, "test": 10_000}, {"train": 0, "test": 1}
CIFAR10_BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)],
                   "test": ["test_batch.bin"]}
CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then 32x32 values of red, of green and of blue
CIFAR10_BATCH = 10_000 * CIFAR10_RECORD  # bytes
AUTO_SECONDS = 30  # seconds after which "auto" stops downloading MNIST


def load_dataset(name, split="train", data_dir="data"):
    """Load the "train" or "test" split of one of DATASETS.

    Returns images (N, C, H, W) float32 in [-1, 1], and labels (N,) int64. Each call decides afresh
    what "auto" and "coloured" stand for: to load both splits, call `choose_dataset` once before.
    Raises UserError for an unknown name and for damaged or missing files, and ValueError for an
    unknown split.
    """
    source, coloured, folder = resolve(name, split, data_dir)
    if source == "drawn":
        images, labels = draw_digits(DRAWN[split], SEEDS[split])
    else:
        pixels, labels = read(source, split, folder)
        images, labels = pixels.float().div_(127.5).sub_(1), labels.long()
    if coloured:
        images, _ = colourise(images, labels, SEEDS[split], train=split == "train")
    return images, labels


def captions(name, split="train", data_dir="data"):
    """Describe the images of `load_dataset(name, split, data_dir)`: N prompts in the same order."""
    source, coloured, folder = resolve(name, split, data_dir)
    if source == "drawn":
        prompts, labels = describe_digits(DRAWN[split], SEEDS[split])
    else:
        _, labels = read(source, split, folder)
        prompts = [with_article(NOUNS[source][label]) for label in labels.tolist()]
    if coloured:
        prompts, *_ = choose_colours(labels, SEEDS[split], train=split == "train")
    return prompts


def resolve(name, split, data_dir):
    """Return the dataset before it is coloured, whether it is coloured, and its files' folder."""
    if split not in SEEDS:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    name = choose_dataset(name, data_dir)
    source = name.removeprefix("coloured-")
    return source, source != name, Path(data_dir, source).absolute()


def choose_dataset(name, data_dir="data"):
    """Return the dataset that a name stands for.

    "auto" is "mnist" if its files are in data_dir or arrive there within AUTO_SECONDS; otherwise it
    is "drawn", and we print a warning. "coloured" becomes "coloured-mnist" or "coloured-drawn" in
    the same way. Any other of DATASETS stands for itself. Raises UserError for an unknown name.
    """
    if name not in DATASETS:
        raise UserError(f"there is no dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if name not in ("auto", "coloured"):
        return name
    prefix = "coloured-" if name == "coloured" else ""
    deadline = time.monotonic() + AUTO_SECONDS
    try:
        for file in DOWNLOADS["mnist"][1]:
            find_or_download("mnist", file, Path(data_dir) / "mnist", deadline)
        return prefix + "mnist"
    except UserError as error:
        print(f"\n{'#' * 100}\nTHIS IS NOT MNIST: the program draws its own digits instead, "
              f"because {error}\n{'#' * 100}\n", file=sys.stderr, flush=True)
        return prefix + "drawn"


@functools.lru_cache(maxsize=2)  # both splits: images and captions come from the same files
def read(name, split, folder):
    """Read a split of a downloaded dataset: pixels (N, C, H, W) and labels (N,), both uint8.

    Raises UserError if a file is damaged or missing.
    """
    if name == "cifar10":
        return read_cifar10(split, folder)
    prefix = "train" if split == "train" else "t10k"
    pixels = read_idx(
        find_or_download(name, f"{prefix}-images-idx3-ubyte.gz", folder), (28, 28))
    labels = read_idx(
        path := find_or_download(name, f"{prefix}-labels-idx1-ubyte.gz", folder), ())
    with reading(path):
        require(len(labels) == len(pixels),
                f"it holds {len(labels)} labels, but there are {len(pixels)} images")
        require(labels.max() <= 9, f"it holds the label {labels.max()}")
    return pixels[:, None], labels


def read_idx(path, item_shape):
    """Read a gzipped IDX file of bytes: (N, *item_shape) uint8.

    The header is 0, 0, 8 (for unsigned bytes), the number of dimensions, then the size of each
    dimension as a big-endian 32-bit number. We never unpack more than MAX_BYTES.
    """
    with reading(path), gzip.open(path) as file:
        content = bytearray(file.read(MAX_BYTES))
        shape = torch.Size([int.from_bytes(content[4:8], "big"), *item_shape])
        header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        require(content.startswith(header) and shape[0] > 0,
                f"it does not begin as an IDX file of {item_shape} items")
        require(len(content) == len(header) + shape.numel(),
                f"it does not hold the {shape[0]} items that it announces")
        return torch.frombuffer(content, dtype=torch.uint8, offset=len(header)).reshape(shape)


def read_cifar10(split, folder):
    """Read a split of CIFAR-10 from its binary version: (N, 3, 32, 32) and (N,), both uint8.

    The archive is cifar-10-binary.tar.xz if it is there, and .tar.gz otherwise. Nothing is
    unpacked to the disk.
    """
    path = (next(folder.glob("cifar-10-binary.tar.xz"), None)
            or find_or_download("cifar10", "cifar-10-binary.tar.gz", folder))
    names, batches = CIFAR10_BATCHES[split], {}
    with reading(path), tarfile.open(path) as archive:
        for member in archive:
            require(0 <= member.size <= CIFAR10_BATCH, "a member is longer than a batch")
            name = member.name.split("/")[-1]
            if name in names and member.isfile():
                batches[name] = archive.extractfile(member).read()
        while archive.fileobj.read(2**20):  # the checksum is at the very end
            pass
        for name in names:
            require(name in batches, f"it holds no {name}, which the binary version has; the "
                                     "python version is a pickle")
            require(batches[name] and len(batches[name]) % CIFAR10_RECORD == 0,
                    f"{name} is not made of records of {CIFAR10_RECORD} bytes")
        content = bytearray().join(batches[name] for name in names)
        records = torch.frombuffer(content, dtype=torch.uint8).reshape(-1, CIFAR10_RECORD)
        labels, pixels = records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32)
        require(labels.max() <= 9, f"it holds the label {labels.max()}")
        return pixels, labels


@contextlib.contextmanager
def reading(path):
    """Turn any error into a UserError that names the file: damage can raise almost anything."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): delete it and run again") from None
