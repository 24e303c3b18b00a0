"""The readers on tiny files, on damaged ones, and the download against a small web server on this machine."""

import contextlib
import errno
import gzip
import hashlib
import io
import multiprocessing
import os
import resource
import struct
import sys
import tarfile
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from minicnet import data
from minicnet.conditions import canny
from minicnet.data import DataError, choose_dataset, load_dataset
from minicnet.digits import draw_digits
from minicnet.evaluation import edge_f1

PROCESSES = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo"])     # imported once for all processes
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (7, 28, 28), dtype=np.uint8)
PIXELS[0, 0, :3] = 0, 255, 51
LABELS = np.array([3, 0, 9, 1, 1, 8, 5], dtype=np.uint8)


def idx(array):
    """The bytes of an IDX file, written from the format's description and not with the reader's help."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(data_dir, name="mnist", images=None, labels=None, packed=True):
    folder = data_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    for split in "train", "t10k":
        for file, content in ((f"{split}-images-idx3-ubyte", idx(PIXELS) if images is None else images),
                              (f"{split}-labels-idx1-ubyte", idx(LABELS) if labels is None else labels)):
            (folder / (file + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_cifar10(folder, prefix="", suffix=".bin", records=3):
    """Write six batches of `records` records, loose; record i of batch b is labelled (b + i) % 10. -> {file: bytes}"""
    files = {}
    for b, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        pixels = np.random.default_rng(b).integers(0, 256, (records, 3072), dtype=np.uint8)
        files[name + suffix] = b"".join(bytes([(b + i) % 10]) + pixels[i].tobytes() for i in range(records))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / prefix).mkdir(exist_ok=True)
        (folder / prefix / name).write_bytes(content)
    return files


def write_tar(path, files, mode="w:gz"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def refusal(*args):
    """The sentence with which load_dataset refuses."""
    with pytest.raises(DataError) as caught:
        load_dataset(*args)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 500
    return sentence


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """What a test forgets to put in place must not be fetched from the internet; nor may a proxy stand in between."""
    for name, (_, files) in data.DOWNLOADS.items():
        monkeypatch.setitem(data.DOWNLOADS, name, (("http://127.0.0.1:9/",), files))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)


# -- Reading -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_packed_and_unpacked(tmp_path, name, split, packed):
    write_mnist(tmp_path, name, packed=packed)
    images, labels = load_dataset(name, split, tmp_path)
    assert images.shape == (7, 1, 28, 28) and images.dtype == torch.float32
    assert labels.dtype == torch.int64 and labels.tolist() == LABELS.tolist()
    assert images[0, 0, 0, :3].tolist() == pytest.approx([-1, 1, -0.6], abs=1e-6)
    assert torch.equal(((images[:, 0] + 1) * 127.5).round().byte(), torch.tensor(PIXELS))


def test_the_dotted_names_of_some_mirrors_are_accepted(tmp_path):
    folder = write_mnist(tmp_path, packed=False)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("-idx", ".idx"))
    assert load_dataset("mnist", "test", str(tmp_path))[0].shape == (7, 1, 28, 28)


def test_train_and_test_are_different_files(tmp_path):
    folder = write_mnist(tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:2])))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(PIXELS[5:])))
    assert len(load_dataset("mnist", "train", tmp_path)[0]) == 7
    assert load_dataset("mnist", "test", tmp_path)[1].tolist() == [3, 0]


def test_cifar10_is_read_loose_unpacked_and_from_archives(tmp_path):
    files = write_cifar10(tmp_path / "a" / "cifar10")
    write_cifar10(tmp_path / "b" / "cifar10", prefix="cifar-10-batches-bin")
    inside = {f"cifar-10-batches-bin/{name}": content for name, content in reversed(files.items())}
    write_tar(tmp_path / "c" / "cifar10" / "cifar-10-binary.tar.gz", inside)
    write_tar(tmp_path / "d" / "cifar10" / "cifar-10-binary.tar.xz", files, "w:xz")
    red_green_blue = torch.tensor(np.frombuffer(files["data_batch_2.bin"], np.uint8)[1:3073].reshape(3, 32, 32).copy())
    for place in "abcd":
        images, labels = load_dataset("cifar10", "train", tmp_path / place)
        assert images.shape == (15, 3, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
        assert labels.tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5, 4, 5, 6]     # the batches in their own order
        assert torch.equal(((images[3] + 1) * 127.5).round().byte(), red_green_blue)
        images, labels = load_dataset("cifar10", "test", tmp_path / place)
        assert images.shape == (3, 3, 32, 32) and labels.tolist() == [5, 6, 7]


def test_an_archive_is_read_and_not_unpacked(tmp_path):
    files = {f"../../../{name}": content for name, content in write_cifar10(tmp_path / "elsewhere").items()}
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", files)
    before = sorted(tmp_path.rglob("*"))
    assert len(load_dataset("cifar10", "train", tmp_path)[0]) == 15
    assert sorted(tmp_path.rglob("*")) == before


def test_only_plain_files_in_an_archive_count(tmp_path):
    path = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    for kind in tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE:
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("test_batch.bin")
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
        assert "holds no test_batch.bin" in refusal("cifar10", "test", tmp_path)


def test_drawn_digits_need_no_folder_and_the_splits_differ(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(data, "draw_digits", lambda count, seed: asked.append((count, seed)))
    load_dataset("drawn", "train", tmp_path / "nowhere")
    load_dataset("drawn", "test", tmp_path / "nowhere")
    (train, train_seed), (test, test_seed) = asked
    assert (train, test) == (60_000, 10_000) and train_seed != test_seed
    assert not list(tmp_path.iterdir())


# -- Coloured digits ---------------------------------------------------------------------------------------------------

def test_paper_is_one_dark_colour_and_ink_one_light_one():
    black_and_white = torch.randint(2, (500, 1, 4, 4)) * 2.0 - 1
    black_and_white[:, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    images = data.colourise(black_and_white, seed=3)
    assert images.shape == (500, 3, 4, 4) and images.dtype == torch.float32 and images.abs().max() <= 1
    paper, ink = images[:, :, :1, :1], images[:, :, :1, 1:2]
    assert torch.equal(images, torch.where(black_and_white > 0, ink, paper))
    paper, ink = (paper + 1) / 2, (ink + 1) / 2
    assert 0 <= paper.min() < 0.01 and 0.29 < paper.max() < 0.3001
    assert 0.2999 < ink.min() < 0.35
    torch.testing.assert_close(ink.amax(1), torch.ones(500, 1, 1))             # one of red, green and blue is full


def test_the_colours_of_paper_are_even_and_all_channels_independent():
    black_and_white = torch.tensor([-1.0, 1.0]).expand(5000, 1, 1, 2)
    paper, ink = (data.colourise(black_and_white, seed=0)[:, :, 0].unbind(-1))  # (5000, 3) both
    even = 2 * 0.3 * (torch.arange(5000) + 0.5) / 5000 - 1
    assert (paper.T.sort().values - even).abs().max() < 0.02
    assert (torch.corrcoef(paper.T) - torch.eye(3)).abs().max() < 0.05
    assert torch.corrcoef(torch.cat([paper, ink], dim=1).T)[:3, 3:].abs().max() < 0.05
    shares = torch.stack([(ink[:, i] > 0.999).float().mean() for i in range(3)])
    assert (shares - 1 / 3).abs().max() < 0.03                                  # none of the three is favoured


def test_gray_lies_between_paper_and_ink():
    black, gray, white = (data.colourise(torch.full((20, 1, 1, 1), value), seed=1) for value in (-1.0, -0.5, 1.0))
    torch.testing.assert_close(gray, 0.75 * black + 0.25 * white)


def test_a_seed_always_gives_the_same_colours():
    images = torch.full((9, 1, 2, 2), -1.0)
    assert torch.equal(data.colourise(images, seed=1), data.colourise(images, seed=1))
    assert not torch.isclose(data.colourise(images, seed=1), data.colourise(images, seed=2)).any()
    before = torch.get_rng_state()
    data.colourise(images, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_coloured_digits_are_those_of_the_gray_dataset_painted(tmp_path):
    write_mnist(tmp_path)
    gray, labels = load_dataset("mnist", "train", tmp_path)
    train, train_labels = load_dataset("coloured-mnist", "train", tmp_path)
    test, _ = load_dataset("coloured-mnist", "test", tmp_path)
    assert torch.equal(train, data.colourise(gray, 0)) and torch.equal(train_labels, labels)
    assert torch.equal(test, data.colourise(gray, 1)) and not torch.equal(train, test)    # the same digits, here
    assert torch.equal(load_dataset("coloured", "train", tmp_path)[0], train)


def test_coloured_is_mnist_or_drawn_as_auto_is(tmp_path, capsys):
    assert choose_dataset("coloured", tmp_path) == "coloured-drawn"
    assert "THIS IS NOT MNIST" in capsys.readouterr().err
    write_mnist(tmp_path)
    assert choose_dataset("coloured", tmp_path) == "coloured-mnist"
    assert choose_dataset("coloured-drawn", tmp_path) == "coloured-drawn"


def test_coloured_drawn_digits_need_no_folder(tmp_path, monkeypatch):
    digits = torch.rand(4, 1, 28, 28) * 2 - 1, torch.arange(4)
    monkeypatch.setattr(data, "draw_digits", lambda count, seed: digits)
    images, labels = load_dataset("coloured-drawn", "train", tmp_path / "nowhere")
    assert torch.equal(images, data.colourise(digits[0], 0)) and torch.equal(labels, digits[1])


def test_coloured_digits_have_about_the_edges_of_the_gray_ones():
    gray, _ = draw_digits(200, seed=0)
    assert edge_f1(data.colourise(gray, seed=0), canny(gray)) > 0.95


# -- Refusing ----------------------------------------------------------------------------------------------------------

def test_an_unknown_dataset_is_refused_with_the_names_there_are():
    sentence = refusal("minst")
    assert "minst" in sentence and all(name in sentence for name in data.DATASETS)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="validation"):
        load_dataset("drawn", "validation")


GOOD = idx(PIXELS)
HUGE = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 28, 28)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("content, why", [
    (b"", "does not begin like an IDX file"),
    (GOOD[:10], "does not begin like an IDX file"),
    (b"\0\0\x09\x03" + GOOD[4:], "does not begin like an IDX file"),
    (idx(LABELS), "does not begin like an IDX file"),
    (b"<html>not found, but politely</html>", "does not begin like an IDX file"),
    (idx(PIXELS[:, :27]), "(27, 28)"),
    (idx(PIXELS[:0]), "announces 0 items"),
    (HUGE, "announces 4294967295 items"),
    (GOOD[:-1], "less than its header announces"),
    (GOOD[:16], "less than its header announces"),
    (GOOD + b"\0", "more than its header announces"),
], ids=["empty", "short header", "bad magic", "labels", "html", "wrong size", "no images", "huge", "truncated",
        "only header", "trailing"])
def test_damaged_idx_images_are_refused_by_name(tmp_path, content, why, packed):
    write_mnist(tmp_path, images=content, packed=packed)
    sentence = refusal("mnist", "train", tmp_path)
    assert "train-images-idx3-ubyte" in sentence and why in sentence and "delete it" in sentence


def test_a_gzip_bomb_is_not_blown_up(tmp_path):
    write_mnist(tmp_path, images=idx(PIXELS) + bytes(20_000_000))
    tracemalloc.start()
    try:
        assert "more than its header announces" in refusal("mnist", "train", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000               # bytes, at the peak
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damage", [
    lambda packed: packed[:len(packed) // 2],                               # cut short
    lambda packed: packed[:1000] + b"\xff" * 100 + packed[1100:],           # scratched in the middle
    lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:],                 # wrong checksum
    lambda packed: packed[:5],
    lambda packed: b"",
    lambda packed: b"no archive at all",
], ids=["cut", "scratched", "checksum", "header", "empty", "no gzip"])
def test_a_corrupt_gzip_is_refused_by_name(tmp_path, damage):
    folder = write_mnist(tmp_path)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal("mnist", "test", tmp_path)
    assert len(load_dataset("mnist", "train", tmp_path)[0]) == 7


def test_a_label_above_nine_is_refused(tmp_path):
    write_mnist(tmp_path, labels=idx(np.array([1, 2, 3, 4, 5, 6, 10], dtype=np.uint8)))
    sentence = refusal("mnist", "train", tmp_path)
    assert "label 10" in sentence and "train-labels-idx1-ubyte.gz" in sentence


def test_images_without_a_label_each_are_refused(tmp_path):
    write_mnist(tmp_path, labels=idx(LABELS[:6]))
    sentence = refusal("mnist", "train", tmp_path)
    assert "7 images" in sentence and "6 labels" in sentence


@pytest.mark.parametrize("content", [b"", b"\1" * 3072, b"\1" * 3074, b"\x0a" * 3073],
                         ids=["empty", "a byte short", "a byte long", "label 10"])
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_cifar10_batches_are_refused_by_name(tmp_path, content, packed):
    files = write_cifar10(tmp_path / ("elsewhere" if packed else "cifar10")) | {"data_batch_4.bin": content}
    if packed:
        write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", files)
    else:
        (tmp_path / "cifar10" / "data_batch_4.bin").write_bytes(content)
    assert "data_batch_4.bin" in refusal("cifar10", "train", tmp_path)
    assert len(load_dataset("cifar10", "test", tmp_path)[0]) == 3


def test_a_missing_cifar10_batch_is_taken_from_the_archive_or_named(tmp_path):
    files = write_cifar10(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "data_batch_3.bin").unlink()
    assert "could not download cifar-10-binary.tar.gz" in refusal("cifar10", "train", tmp_path)
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", files)
    assert len(load_dataset("cifar10", "train", tmp_path)[0]) == 15
    del files["data_batch_5.bin"]
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", files)
    assert "holds no data_batch_5.bin" in refusal("cifar10", "train", tmp_path)


def test_the_python_version_of_cifar10_is_not_unpickled(tmp_path):
    files = write_cifar10(tmp_path / "cifar10", prefix="cifar-10-batches-py", suffix="")
    sentence = refusal("cifar10", "train", tmp_path)
    assert "cifar-10-binary.tar.gz" in sentence                             # not read in place of the binary version
    inside = {f"cifar-10-batches-py/{name}": content for name, content in files.items()}
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", inside)
    sentence = refusal("cifar10", "train", tmp_path)
    assert "binary version" in sentence and "pickle" in sentence


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_corrupt_archive_is_refused_by_name(tmp_path, mode):
    path = tmp_path / "cifar10" / f"cifar-10-binary.tar.{mode[2:]}"
    write_tar(path, write_cifar10(tmp_path / "elsewhere"), mode)
    whole = path.read_bytes()
    for content in (whole[:len(whole) // 2], whole[:20], b"", b"no archive at all" * 1000, whole[100:]):
        path.write_bytes(content)
        assert path.name in refusal("cifar10", "train", tmp_path)


def test_a_directory_in_place_of_the_data_is_refused(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "fashion-mnist").write_text("a file where a folder should be")
    assert "train-images-idx3-ubyte.gz" in refusal("fashion-mnist", "train", tmp_path)


# -- Thousands of damaged files ----------------------------------------------------------------------------------------

def harm(content, random):
    """The bytes with one damage: cut short, a part lost, doubled, moved in or scratched, or one bit to five flipped."""
    start, length = int(random.integers(len(content) + 1)), int(random.integers(1, 100))
    if random.random() < 0.5:
        start = min(start, int(random.integers(40)))                        # at the head, where most can go wrong
    head, part, tail = content[:start], content[start:start + length], content[start + length:]
    kind = random.integers(6)
    if kind == 5:
        bits = np.frombuffer(content, np.uint8).copy()
        for place in random.integers(start, len(content) + 1, size=random.integers(1, 6)):
            bits[min(place, len(bits) - 1)] ^= 1 << random.integers(8)
        return bits.tobytes()
    return [head, head + tail, head + part + part + tail, head + random.bytes(length) + part + tail,
            head + random.bytes(len(part)) + tail][kind]


def read_or_refused(name, split, data_dir):
    """The pixels (N, C, H, W) and labels (N,), uint8, or None if they were refused with a sentence, as they may be."""
    try:
        images, labels = load_dataset(name, split, data_dir)
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 500 and str(data_dir) in str(error)
        return None
    return ((images + 1) * 127.5).round().byte().numpy(), labels.byte().numpy()


@pytest.fixture
def little_memory():
    """A test may not need more than 100 MB, even for a moment."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000 * (1000 if sys.platform == "darwin" else 1)      # kB, but bytes on a Mac


@pytest.mark.parametrize("file", ["images", "labels"])
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_idx_files_are_refused_unless_only_values_differ(tmp_path, little_memory, file, packed):
    """A file is right if it has the length and header of the whole one: flipped pixels cannot be known for such."""
    random, content, read = np.random.default_rng(1), idx(PIXELS if file == "images" else LABELS), 0
    start = content.index((PIXELS if file == "images" else LABELS).tobytes())
    path = next(write_mnist(tmp_path, packed=packed).glob(f"train-{file}-*"))
    for _ in range(800):
        damaged = harm(content, random)
        if random.random() < 0.1:                                           # a header that asks for terabytes
            damaged = content[:4] + random.bytes(start - 4) + content[start:]
        path.write_bytes(gzip.compress(damaged, 1) if packed else damaged)
        values = np.frombuffer(damaged[start:], np.uint8)
        right = damaged[:start] == content[:start] and len(damaged) == len(content)
        right &= file == "images" or max(values, default=99) <= 9
        found = read_or_refused("mnist", "train", tmp_path)
        assert (found is not None) == right
        assert not right or (found[file == "labels"].ravel() == values).all()
        read += right
    assert 20 < read < 600


def test_packed_files_that_were_damaged_are_refused_or_read_as_they_were(tmp_path, little_memory):
    random, files = np.random.default_rng(2), write_cifar10(tmp_path / "elsewhere")
    mnist, cifar10 = write_mnist(tmp_path) / "t10k-images-idx3-ubyte.gz", tmp_path / "cifar10"
    write_tar(cifar10 / "cifar-10-binary.tar.gz", files)
    write_tar(tmp_path / "tar.xz", files, "w:xz")
    pixels = np.frombuffer(files["test_batch.bin"], np.uint8).reshape(3, 3073)[:, 1:].reshape(3, 3, 32, 32)
    whole = {"gz": (cifar10 / "cifar-10-binary.tar.gz").read_bytes(), "xz": (tmp_path / "tar.xz").read_bytes()}
    packed = mnist.read_bytes()
    read = []
    for _ in range(600):
        mnist.write_bytes(harm(packed, random))
        found = read_or_refused("mnist", "test", tmp_path)
        assert found is None or (found[0][:, 0] == PIXELS).all()
        read.append(found is not None)
    for _ in range(400):
        kind = str(random.choice(["gz", "xz"]))
        for path in cifar10.iterdir():
            path.unlink()
        (cifar10 / f"cifar-10-binary.tar.{kind}").write_bytes(harm(whole[kind], random))
        found = read_or_refused("cifar10", "test", tmp_path)
        assert found is None or (found[0] == pixels).all()
        read.append(found is not None)
    assert 5 < sum(read) < 200                                              # the time of writing may be any


def test_damaged_cifar10_batches_are_refused_unless_they_are_whole_records(tmp_path, little_memory):
    random, files, read = np.random.default_rng(3), write_cifar10(tmp_path / "cifar10"), 0
    for _ in range(500):
        damaged = harm(files["test_batch.bin"], random)
        if random.random() < 0.2:
            damaged = damaged[:random.integers(3) * 3073]
        (tmp_path / "cifar10" / "test_batch.bin").write_bytes(damaged)
        found = read_or_refused("cifar10", "test", tmp_path)
        right = len(damaged) > 0 and len(damaged) % 3073 == 0 and max(damaged[::3073]) <= 9
        assert (found is not None) == right
        assert not right or b"".join(bytes([label]) + p.tobytes() for p, label in zip(*found)) == damaged
        read += right
    assert 50 < read < 400


def tar_header(name, size, kind=b"0"):
    """A header of a tar archive, with whatever in its size field of 12 bytes."""
    header = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"0" * 11 + b"\0" + b" " * 8
    header = (header + kind).ljust(257, b"\0") + b"ustar\00000"
    return (header[:148] + b"%06o\0 " % sum(header) + header[156:]).ljust(512, b"\0")


def test_archives_with_odd_members_are_refused_or_read_right(tmp_path, little_memory):
    """The batch among folders, links, devices, extensions and kinds that do not exist, with sizes of all kinds."""
    random, batch, read = np.random.default_rng(4), write_cifar10(tmp_path / "elsewhere")["test_batch.bin"], 0
    names = ["test_batch.bin", "../test_batch.bin", "/etc/passwd", "", "test_batch.bin/", "a" * 100, "./PaxHeaders/x"]
    sizes = [b"%011o\0" % 0, b"%011o\0" % 7, b"777777777777", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\0" * 12,
             b"-0000000001\0", b"%011o\0" % 2**31, b"not a number"]
    kinds = [b"0", b"\0", *(b"%d" % i for i in range(1, 8)), b"x", b"g", b"L", b"K", b"S", b"V", b"M", b"?", b"\xff"]
    (tmp_path / "cifar10").mkdir()
    for _ in range(600):
        members = [tar_header("cifar/test_batch.bin", b"%011o\0" % len(batch)) + batch + bytes(-len(batch) % 512)]
        for _ in range(random.integers(4)):
            name, kind = names[random.integers(len(names))], kinds[random.integers(len(kinds))]
            if kind in b"0\0" and "test_batch.bin" in name:
                name = "data_batch_1.bin"
            size = sizes[random.integers(2 if random.random() < 0.6 else len(sizes))]
            content = bytes(512) if size == sizes[1] and kind not in b"123456" else b""
            members.insert(random.integers(len(members) + 1), tar_header(name, size, kind) + content)
        archive = b"".join(members) + bytes(512 * random.integers(3))
        (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(archive, 1))
        found = read_or_refused("cifar10", "test", tmp_path)
        assert found is None or b"".join(bytes([label]) + p.tobytes() for p, label in zip(*found)) == batch
        read += found is not None
    assert 200 < read < 500


@pytest.mark.parametrize("start", [
    b"", tar_header("x", b"%011o\0" % 2**32, b"x"), tar_header("x", b"77777777777\0", b"L"),
    tar_header("readme", b"%011o\0" % 2**28), tar_header("test_batch.bin", b"%011o\0" % 2**28)],
    ids=["zeros", "extension", "long name", "other member", "batch"])
def test_a_tar_bomb_is_not_blown_up(tmp_path, little_memory, start):
    (tmp_path / "cifar10").mkdir()
    bomb = gzip.compress(start) + gzip.compress(bytes(10_000_000)) * 1000   # 10 GB
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(bomb)
    started = time.monotonic()
    assert "cifar-10-binary.tar.gz cannot be read" in refusal("cifar10", "test", tmp_path)
    assert time.monotonic() - started < 10                                  # all of it would take a minute


def test_links_are_followed_to_files_alone(tmp_path):
    folder = write_mnist(tmp_path, packed=False)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    images.rename(tmp_path / "images")
    images.symlink_to(tmp_path / "images")
    assert len(load_dataset("mnist", "train", tmp_path)[0]) == 7
    for target in ("/dev/zero", tmp_path, tmp_path / "nowhere", images):
        images.unlink()
        images.symlink_to(target)
        assert "could not download train-images" in refusal("mnist", "train", tmp_path)
    labels.unlink()
    os.mkfifo(labels)                                                       # which would be waited at for ever
    assert "could not download" in refusal("mnist", "train", tmp_path)


# -- Downloading -------------------------------------------------------------------------------------------------------

class Mirror(BaseHTTPRequestHandler):
    """/good/ answers with the file, the other paths each with a trouble of its own."""

    def do_GET(self):
        _, how, file = self.path.split("/")
        content = self.server.files.get(file, b"")
        self.server.asked.append(self.path)
        if how == "hanging":
            self.server.stop.wait(20)
        elif how in ("broken", "missing"):
            self.send_error(500 if how == "broken" else 404)
        elif how in ("circling", "astray"):
            self.send_response(302)
            self.send_header("Location", self.path if how == "circling" else "http://[nowhere")
            self.end_headers()
        elif how == "babbling":
            self.wfile.write(self.server.answers.pop())
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if how == "truncated":
                content = content[:len(content) // 2]
            elif how == "wrong":
                content = content[:-1] + b"?"
            for start in range(0, len(content), 100):
                self.wfile.write(content[start:start + 100])
                if how == "dripping" and self.server.stop.wait(0.05):
                    break

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """A web server with MNIST's four files; call it with the troubles that the mirrors in turn should have."""
    write_mnist(tmp_path / "server")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.files = {path.name: path.read_bytes() for path in (tmp_path / "server" / "mnist").iterdir()}
    server.asked, server.answers, server.stop = [], [], threading.Event()
    server.handle_error = lambda *_: None                                   # clients that hang up are what we test
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()

    def use(*ways):
        monkeypatch.setattr(data, "TIMEOUT", 0.7 if "hanging" in ways else 5)
        mirrors = [f"http://127.0.0.1:{server.server_port}/{way}/" for way in ways]
        md5s = {name: hashlib.md5(content).hexdigest() for name, content in server.files.items()}
        monkeypatch.setitem(data.DOWNLOADS, "mnist", (mirrors, md5s))
        return server
    yield use
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_missing_files_are_downloaded_once(tmp_path, mirror):
    server = mirror("good")
    images, labels = load_dataset("mnist", "train", tmp_path / "data")
    assert len(images) == 7 and labels.tolist() == LABELS.tolist()
    assert sorted(path.name for path in (tmp_path / "data" / "mnist").iterdir()) == [
        "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    load_dataset("mnist", "train", tmp_path / "data")
    assert len(server.asked) == 2


def test_files_that_are_there_need_no_network(tmp_path, mirror):
    server = mirror("good")
    write_mnist(tmp_path / "data", packed=False)
    load_dataset("mnist", "train", tmp_path / "data")
    assert choose_dataset("auto", tmp_path / "data") == "mnist"
    assert not server.asked


@pytest.mark.parametrize("trouble", ["broken", "truncated", "wrong", "hanging"])
def test_the_second_mirror_helps_out(tmp_path, mirror, trouble):
    server = mirror(trouble, "good")
    load_dataset("mnist", "test", tmp_path / "data")
    assert [path.split("/")[1] for path in server.asked] == [trouble, "good"] * 2
    assert {path.name for path in (tmp_path / "data" / "mnist").iterdir()} <= set(server.files)


@pytest.mark.parametrize("trouble, why", [("broken", "Internal Server Error"), ("truncated", "md5"), ("wrong", "md5"),
                                          ("hanging", "timed out"), ("missing", "Not Found"),
                                          ("circling", "infinite loop"), ("astray", "IPv6")])
def test_a_failed_download_leaves_nothing_behind_and_says_why(tmp_path, mirror, trouble, why):
    mirror(trouble)
    started = time.monotonic()
    sentence = refusal("mnist", "train", tmp_path / "data")
    assert time.monotonic() - started < 2.5
    assert why in sentence and f"/{trouble}/" in sentence and "train-images-idx3-ubyte.gz" in sentence
    assert "drawn" in sentence and str(tmp_path / "data" / "mnist") in sentence
    assert not list((tmp_path / "data" / "mnist").iterdir())


def test_a_mirror_that_only_drips_is_given_up(tmp_path, mirror, monkeypatch):
    server = mirror("dripping", "good")
    monkeypatch.setattr(data, "PATIENCE", 0.3)
    started = time.monotonic()
    assert len(load_dataset("mnist", "train", tmp_path / "data")[0]) == 7
    assert time.monotonic() - started < 2.5                                 # the images alone would take 2.8
    assert server.asked[0].startswith("/dripping/train-images") and server.asked[1].startswith("/good/train-images")


def test_a_mirror_may_answer_anything(tmp_path, mirror):
    """Answers at random: their parts are such as servers send, in any order, and bytes of any kind."""
    random = np.random.default_rng(5)
    parts = [b"HTTP/1.1 ", b"HTTP/1.0 ", b"200 OK", b"206", b"301 Moved", b"-1", b"\r\n", b"\r\n\r\n", b"\0", b"0\r\n",
             b"Content-Length: 7\r\n", b"Content-Length: -7\r\n", b"Content-Length: 9999999999999999999999\r\n",
             b"Transfer-Encoding: chunked\r\n\r\n", b"fffffffffffffffffff\r\n", b"Location: http://a:b/\r\n",
             b"x" * 70_000]
    server = mirror("babbling")
    for _ in range(150):
        answer = b"HTTP/1.1 200 OK\r\n" * int(random.integers(2))
        server.answers = [answer + b"".join(parts[i] for i in random.integers(len(parts), size=random.integers(6)))
                          + random.bytes(random.integers(30))]
        with pytest.raises(DataError) as caught:
            data.download("mnist", "t10k-labels-idx1-ubyte.gz", tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        assert [path.name for path in tmp_path.iterdir()] == ["server"]


def read_from(mirror, folder):
    data.DOWNLOADS["mnist"] = [mirror], dict.fromkeys(data.DOWNLOADS["mnist"][1])
    data.read_mnist("mnist", "train", folder)


def test_a_download_that_is_killed_leaves_nothing_under_the_files_name(tmp_path, mirror):
    server, folder = mirror("dripping"), tmp_path / "data" / "mnist"
    process = PROCESSES.Process(target=read_from, args=[f"http://127.0.0.1:{server.server_port}/dripping/", folder])
    process.start()
    while not (folder.exists() and list(folder.iterdir())):
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert [path.suffix for path in folder.iterdir()] == [".part"]
    mirror("good")
    assert len(load_dataset("mnist", "train", tmp_path / "data")[0]) == 7   # and what is left is in nobody's way


def test_an_endless_download_is_stopped(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(data, "MAX_DOWNLOAD", 1000)
    mirror("good")
    assert "more than 1000 bytes" in refusal("mnist", "train", tmp_path / "data")


def test_a_full_disk_leaves_nothing_behind_and_is_said(tmp_path, mirror, monkeypatch):
    mirror("good")

    def fetch(url, path, *_):
        path.write_bytes(b"the half of i")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(data, "fetch", fetch)
    assert "No space left" in refusal("mnist", "train", tmp_path / "data")
    assert not list((tmp_path / "data" / "mnist").iterdir())


def test_an_interrupted_download_leaves_nothing_behind(tmp_path, mirror, monkeypatch):
    mirror("good")

    class Interrupted:
        def __init__(self, **_):
            raise KeyboardInterrupt
    monkeypatch.setattr(data, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist", "train", tmp_path / "data")
    assert not list((tmp_path / "data" / "mnist").iterdir())


def test_a_file_already_there_survives_a_failed_download(tmp_path, mirror):
    mirror("wrong")
    folder = write_mnist(tmp_path / "data")
    (folder / "train-images-idx3-ubyte.gz").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refusal("mnist", "train", tmp_path / "data")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path, mirror):
    mirror("good")
    tmp_path.chmod(0o500)
    assert "Permission denied" in refusal("mnist", "train", tmp_path / "data")


# -- Choosing ----------------------------------------------------------------------------------------------------------

def test_auto_takes_mnist_if_it_can_be_fetched(tmp_path, mirror, capsys):
    mirror("good")
    assert choose_dataset("auto", tmp_path / "data") == "mnist"
    assert len(list((tmp_path / "data" / "mnist").iterdir())) == 4          # both splits: nothing can go wrong later
    assert "NOT MNIST" not in capsys.readouterr().err


def test_auto_falls_back_to_drawn_digits_and_says_so(tmp_path, mirror, capsys):
    mirror("broken", "truncated")
    assert choose_dataset("auto", tmp_path / "data") == "drawn"
    err = capsys.readouterr().err
    assert "THIS IS NOT MNIST" in err and "draws its own digits" in err and "#" * 60 in err
    assert "Internal Server Error" in err and str(tmp_path / "data" / "mnist") in err


def test_auto_gives_up_a_slow_mirror(tmp_path, mirror, capsys, monkeypatch):
    mirror("dripping", "good")
    monkeypatch.setattr(data, "AUTO_SECONDS", 0.3)
    started = time.monotonic()
    assert choose_dataset("auto", tmp_path / "data") == "drawn"
    assert time.monotonic() - started < 2.5                                 # the whole file would take 2.8
    assert "too slow" in capsys.readouterr().err and not list((tmp_path / "data" / "mnist").iterdir())


def test_auto_does_not_hide_damaged_files(tmp_path):
    write_mnist(tmp_path, images=GOOD[:-1])
    assert choose_dataset("auto", tmp_path) == "mnist"
    assert "train-images" in refusal("auto", "train", tmp_path)


def test_a_named_dataset_is_chosen_as_it_is(tmp_path):
    for name in "mnist", "fashion-mnist", "cifar10", "drawn":
        assert choose_dataset(name, tmp_path) == name
    with pytest.raises(DataError, match="imagenet"), contextlib.redirect_stderr(io.StringIO()):
        choose_dataset("imagenet", tmp_path)


def test_every_download_has_mirrors_and_an_md5():
    assert set(data.DOWNLOADS) == {"mnist", "fashion-mnist", "cifar10"} < set(data.DATASETS)
    for mirrors, files in data.DOWNLOADS.values():
        assert mirrors and all(mirror.endswith("/") for mirror in mirrors)
        assert all(len(md5) == 32 and int(md5, 16) for md5 in files.values())
