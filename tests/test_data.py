"""The readers on tiny files, on damaged ones, the download against a web server on this machine, and the captions."""

import errno
import gzip
import hashlib
import io
import os
import struct
import tarfile
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from minicnet import colours, data, digits, downloads
from minicnet.data import DataError, captions, choose_dataset, load_dataset
from minicnet.words import CLOTHES, DIGITS, THINGS, tokenize, with_article

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
        assert labels.tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5, 4, 5, 6]  # the batches in their own order
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


@pytest.fixture
def few_drawn_digits(monkeypatch):
    """Forty digits for training, thirty for tests."""
    monkeypatch.setattr(data, "DRAWN", {"train": 40, "test": 30})
    monkeypatch.setattr(digits, "CHUNK", 20)


def test_drawn_digits_need_no_folder_and_the_splits_differ(tmp_path, few_drawn_digits):
    train, test = (load_dataset("drawn", split, tmp_path / "nowhere")[0] for split in ("train", "test"))
    assert len(train) == 40 and len(test) == 30 and not torch.isclose(train[:30], test).all((1, 2, 3)).any()
    assert not list(tmp_path.iterdir())


# -- Captions ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, nouns", [("mnist", DIGITS), ("fashion-mnist", CLOTHES), ("cifar10", THINGS)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_name_the_labels_in_order(tmp_path, name, nouns, split):
    write_cifar10(tmp_path / name) if name == "cifar10" else write_mnist(tmp_path, name)
    labels = load_dataset(name, split, tmp_path)[1].tolist()
    assert captions(name, split, tmp_path) == [with_article(nouns[label]) for label in labels]


@pytest.mark.parametrize("name", ["drawn", "coloured-drawn", "coloured-mnist"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_hold_the_digit_of_the_label_and_known_words(tmp_path, name, split, few_drawn_digits):
    write_mnist(tmp_path)
    labels, prompts = load_dataset(name, split, tmp_path)[1].tolist(), captions(name, split, tmp_path)
    assert [next(DIGITS.index(word) for word in prompt.split() if word in DIGITS) for prompt in prompts] == labels
    assert tokenize(prompts).shape[0] == len(labels)


@pytest.mark.parametrize("split", ["train", "test"])
def test_coloured_images_are_the_gray_ones_painted_as_the_captions_say(tmp_path, split, few_drawn_digits):
    gray, images = (load_dataset(name, split)[0] for name in ("drawn", "coloured-drawn"))
    for white, image, prompt in zip(gray[:, 0], (images + 1) / 2, captions("coloured-drawn", split)):
        _, ink, _, _, paper, _ = prompt.split()
        families = {**colours.LIGHT, **colours.DARK}
        for name, gray_value in ((ink, 1), (paper, -1)):
            colour = image[:, white == gray_value]  # (3, P)
            assert (colour - colour[:, :1]).abs().max() == 0
            distance = (torch.tensor(list(families.values())) - colour[:, 0]).norm(dim=1)
            assert list(families)[distance.argmin()] == name


def test_coloured_is_mnist_or_drawn_as_auto_is(tmp_path, capsys):
    assert choose_dataset("coloured", tmp_path) == "coloured-drawn"
    assert "THIS IS NOT MNIST" in capsys.readouterr().err
    write_mnist(tmp_path)
    assert choose_dataset("coloured", tmp_path) == "coloured-mnist"
    assert captions("coloured", "test", tmp_path) == captions("coloured-mnist", "test", tmp_path)
    assert load_dataset("coloured", "test", tmp_path)[0].shape == (7, 3, 28, 28)


# -- Refusing ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("function", [load_dataset, captions])
def test_an_unknown_dataset_or_split_is_refused(function):
    with pytest.raises(DataError, match="minst") as caught:
        function("minst")
    assert all(name in str(caught.value) for name in data.DATASETS)
    with pytest.raises(ValueError, match="validation"):
        function("drawn", "validation")


GOOD = idx(PIXELS)
HUGE = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 28, 28)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("content, why", [
    (b"", "not begin as an IDX file"),
    (b"\0\0\x09\x03" + GOOD[4:], "not begin as an IDX file"),
    (idx(LABELS), "not begin as an IDX file"),
    (b"<html>not found, but politely</html>", "not begin as an IDX file"),
    (idx(PIXELS[:, :27]), "not begin as an IDX file of (28, 28)"),
    (idx(PIXELS[:0]), "not begin as an IDX file"),
    (HUGE, "the 4294967295 items it announces"),
    (GOOD[:-1], "the 7 items it announces"),
    (GOOD + b"\0", "the 7 items it announces"),
], ids=["empty", "bad magic", "labels", "html", "wrong size", "no images", "huge", "truncated",
        "trailing"])
def test_damaged_idx_images_are_refused_by_name(tmp_path, content, why, packed):
    write_mnist(tmp_path, images=content, packed=packed)
    sentence = refusal("mnist", "train", tmp_path)
    assert "train-images-idx3-ubyte" in sentence and why in sentence and "delete it" in sentence


def test_a_gzip_bomb_is_not_blown_up(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LONGEST", 100_000)
    write_mnist(tmp_path, images=idx(PIXELS) + bytes(20_000_000))
    tracemalloc.start()
    try:
        assert "items it announces" in refusal("mnist", "train", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # bytes, at the peak
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damage", [
    lambda packed: packed[:len(packed) // 2],  # cut short
    lambda packed: packed[:1000] + b"\xff" * 100 + packed[1100:],  # scratched in the middle
    lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:],  # wrong checksum
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


def test_labels_that_do_not_fit_are_refused(tmp_path):
    write_mnist(tmp_path, labels=idx(np.array([1, 2, 3, 4, 5, 6, 10], dtype=np.uint8)))
    assert "train-labels-idx1-ubyte.gz cannot be read (it holds the label 10)" in refusal("mnist", "train", tmp_path)
    write_mnist(tmp_path, labels=idx(LABELS[:6]))
    assert "it holds 6 labels, but there are 7 images" in refusal("mnist", "train", tmp_path)


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
    assert "cifar-10-binary.tar.gz" in sentence  # not read in place of the binary version
    inside = {f"cifar-10-batches-py/{name}": content for name, content in files.items()}
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", inside)
    sentence = refusal("cifar10", "train", tmp_path)
    assert "binary version" in sentence and "pickle" in sentence


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_corrupt_archive_is_refused_by_name(tmp_path, mode):
    path = tmp_path / "cifar10" / f"cifar-10-binary.tar.{mode[2:]}"
    write_tar(path, write_cifar10(tmp_path / "elsewhere"), mode)
    whole = path.read_bytes()
    for content in (whole[:len(whole) // 2], whole[:-9], whole[:20], b"", b"no archive at all" * 1000, whole[100:]):
        path.write_bytes(content)
        assert path.name in refusal("cifar10", "train", tmp_path)


def test_a_file_or_directory_in_place_of_the_other_is_said(tmp_path):
    (tmp_path / "fashion-mnist").write_text("a file where a folder should be")
    assert "train-images-idx3-ubyte.gz" in refusal("fashion-mnist", "train", tmp_path)
    (tmp_path / "mnist" / "train-images-idx3-ubyte").mkdir(parents=True)
    assert "train-images-idx3-ubyte cannot be read" in (sentence := refusal("mnist", "train", tmp_path))
    assert "directory" in sentence
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").mkdir(parents=True)
    assert "directory" in refusal("cifar10", "train", tmp_path)


@pytest.mark.parametrize("name, size", [("test_batch.bin", 3 * 3073 + 1), ("readme.html", 2**40), ("x", -512)])
def test_a_member_longer_than_a_batch_is_refused_before_it_is_read(tmp_path, monkeypatch, name, size):
    monkeypatch.setattr(data, "CIFAR10_LONGEST", 3 * 3073)
    path = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    write_tar(path, write_cifar10(tmp_path / "elsewhere"))
    assert len(load_dataset("cifar10", "test", tmp_path)[0]) == 3
    member = tarfile.TarInfo(name)
    member.size = size  # one that is below 0 leads Python 3.11 round in circles
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)) + path.read_bytes())
    assert "longer than a batch" in refusal("cifar10", "test", tmp_path)


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_flipped_bit_anywhere_in_an_archive_is_noticed_or_harmless(tmp_path, kind):
    files, path = write_cifar10(tmp_path / "elsewhere"), tmp_path / "cifar10" / f"cifar-10-binary.tar.{kind}"
    write_tar(path, files, f"w:{kind}")
    whole, right, noticed = path.read_bytes(), load_dataset("cifar10", "test", tmp_path), 0
    places = range(0, len(whole), len(whole) // 40)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1:])
        try:
            found = load_dataset("cifar10", "test", tmp_path)
            assert torch.equal(found[0], right[0]) and torch.equal(found[1], right[1])  # as the time of writing
        except DataError as error:
            noticed += path.name in str(error)
    assert noticed > len(places) - 4


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
            self.wfile.write(b"HTTP/1.1 \0\r\n\r\nblah")
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
    server.asked, server.stop = [], threading.Event()
    server.handle_error = lambda *_: None  # clients that hang up are what we test
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()

    def use(*ways):
        monkeypatch.setattr(downloads, "TIMEOUT", 0.7 if "hanging" in ways else 5)
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


@pytest.mark.parametrize("trouble", ["broken", "wrong"])
def test_the_second_mirror_helps_out(tmp_path, mirror, trouble):
    server = mirror(trouble, "good")
    load_dataset("mnist", "test", tmp_path / "data")
    assert [path.split("/")[1] for path in server.asked] == [trouble, "good"] * 2
    assert {path.name for path in (tmp_path / "data" / "mnist").iterdir()} <= set(server.files)


@pytest.mark.parametrize("trouble, why", [("broken", "Internal Server Error"), ("truncated", "md5"), ("wrong", "md5"),
                                          ("hanging", "timed out"), ("missing", "Not Found"),
                                          ("circling", "infinite loop"), ("astray", "IPv6"), ("babbling", "HTTP/1.1")])
def test_a_failed_download_leaves_nothing_behind_and_says_why(tmp_path, mirror, trouble, why):
    mirror(trouble)
    started = time.monotonic()
    sentence = refusal("mnist", "train", tmp_path / "data")
    assert time.monotonic() - started < 2.5
    assert why in sentence and f"/{trouble}/" in sentence and "train-images-idx3-ubyte.gz" in sentence
    assert "drawn" in sentence and str(tmp_path / "data" / "mnist") in sentence
    assert not list((tmp_path / "data" / "mnist").iterdir())


def test_an_endless_download_is_stopped(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(downloads, "LONGEST", 1000)
    mirror("good")
    assert "more than 1000 bytes" in refusal("mnist", "train", tmp_path / "data")


def test_a_file_has_its_name_only_when_it_is_whole_and_a_full_disk_is_said(tmp_path, mirror, monkeypatch):
    mirror("good")

    def fetch(url, path, *_):
        path.write_bytes(b"the half of i")
        assert [other.suffix for other in path.parent.iterdir()] == [".part"]  # all that a kill would leave behind
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(downloads, "fetch", fetch)
    assert "No space left" in refusal("mnist", "train", tmp_path / "data")
    assert not list((tmp_path / "data" / "mnist").iterdir())


def test_an_interrupted_download_leaves_nothing_behind(tmp_path, mirror, monkeypatch):
    mirror("good")
    monkeypatch.setattr(downloads.tqdm, "update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist", "train", tmp_path / "data")
    assert not list((tmp_path / "data" / "mnist").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path, mirror):
    mirror("good")
    tmp_path.chmod(0o500)
    assert "Permission denied" in refusal("mnist", "train", tmp_path / "data")


# -- Choosing ----------------------------------------------------------------------------------------------------------

def test_auto_takes_mnist_if_it_can_be_fetched(tmp_path, mirror, capsys):
    mirror("good")
    assert choose_dataset("auto", tmp_path / "data") == "mnist"
    assert len(list((tmp_path / "data" / "mnist").iterdir())) == 4  # both splits: nothing can go wrong later
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
    assert time.monotonic() - started < 2.5  # the whole file would take 2.8
    assert "too slow" in capsys.readouterr().err and not list((tmp_path / "data" / "mnist").iterdir())


def test_auto_does_not_hide_damaged_files(tmp_path):
    write_mnist(tmp_path, images=GOOD[:-1])
    assert choose_dataset("auto", tmp_path) == "mnist"
    assert "train-images" in refusal("auto", "train", tmp_path)


def test_a_named_dataset_is_chosen_as_it_is(tmp_path):
    for name in "mnist", "fashion-mnist", "cifar10", "drawn":
        assert choose_dataset(name, tmp_path) == name
