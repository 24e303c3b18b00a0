"""Datasets: small files, damaged files, captions, and downloads from a server on this machine."""

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from saved import idx, save_mnist

from minicnet.data import colours, datasets, digits, downloads
from minicnet.data.datasets import DATASETS, captions, choose_dataset, load_dataset
from minicnet.data.prompts import attributes
from minicnet.errors import UserError
from minicnet.words import CLOTHES, DIGITS, THINGS, VOCABULARY, tokenize

PIXELS = torch.randint(256, (7, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.tensor([3, 0, 9, 1, 1, 8, 5]).byte()
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
ARCHIVE = "cifar-10-binary.tar.gz"


def write_mnist(data_dir, name="mnist", **contents):
    """Write the four files of MNIST, with other contents of "images" or "labels" if given."""
    return save_mnist(data_dir / name, **{"images": idx(PIXELS), "labels": idx(LABELS), **contents})


def cifar10_batches():
    """Make three records for each batch; record i of batch b has the label (b + i) % 10."""
    generator = torch.Generator().manual_seed(1)
    return {name: b"".join(
        bytes([(b + i) % 10, *torch.randint(256, (3072,), generator=generator).tolist()])
        for i in range(3)) for b, name in enumerate(BATCHES)}


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def refusal(*args):
    """Return the sentence with which load_dataset refuses."""
    with pytest.raises(UserError, match=r"^[^\n]{,500}$") as caught:
        load_dataset(*args)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Let no test use the internet or a proxy, or what another test has read."""
    datasets.read.cache_clear()
    for name, (_, files) in downloads.DOWNLOADS.items():
        monkeypatch.setitem(downloads.DOWNLOADS, name, (("http://127.0.0.1:9/",), files))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def few_digits(monkeypatch):
    monkeypatch.setattr(datasets, "DRAWN", {"train": 40, "test": 30})
    monkeypatch.setattr(digits, "CHUNK", 20)


# -- Reading ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_become_images_and_labels_of_their_own_split(tmp_path, name):
    save_mnist(write_mnist(tmp_path, name), idx(PIXELS[5:]), idx(LABELS[:2]), ["t10k"])
    images, labels = load_dataset(name, "train", str(tmp_path))
    assert images.shape == (7, 1, 28, 28) and images.dtype == torch.float32
    assert labels.dtype == torch.int64 and labels.tolist() == LABELS.tolist()
    torch.testing.assert_close((images[:, 0] + 1) * 127.5, PIXELS.float())
    assert load_dataset(name, "test", tmp_path)[1].tolist() == [3, 0]


@pytest.mark.parametrize("prefix", ["", "cifar-10-batches-bin/", "../../../"])
@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_cifar10_is_read_from_either_archive_and_not_unpacked(tmp_path, prefix, suffix):
    batches, path = cifar10_batches(), (tmp_path / "cifar10" / ARCHIVE).with_suffix(suffix)
    write_tar(path, {prefix + name: batches[name] for name in reversed(batches)})
    images, labels = load_dataset("cifar10", "train", tmp_path)
    assert images.shape == (15, 3, 32, 32) and images.dtype == torch.float32
    assert labels.tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5, 4, 5, 6]  # in the batches' order
    pixels = ((images[3] + 1) * 127.5).round().byte()  # red, green, blue
    assert pixels.numpy().tobytes() == batches["data_batch_2.bin"][1:3073]
    assert load_dataset("cifar10", "test", tmp_path)[1].tolist() == [5, 6, 7]
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


def test_images_and_captions_read_the_files_once_and_share_no_memory(tmp_path):
    folder = write_mnist(tmp_path)
    images, labels = load_dataset("mnist", "train", tmp_path)
    expected = images.clone(), labels.clone()
    for path in folder.iterdir():
        path.write_bytes(b"damaged after it was read")
    images.zero_(), labels.zero_()
    assert captions("mnist", "train", tmp_path)[0] == "a three"
    assert all(map(torch.equal, load_dataset("mnist", "train", tmp_path), expected))


def test_drawn_digits_need_no_folder_and_differ_between_the_splits(tmp_path, few_digits):
    train, test = (load_dataset("drawn", split, tmp_path / "x")[0] for split in ("train", "test"))
    assert len(train) == 40 and len(test) == 30 and not list(tmp_path.iterdir())
    assert not torch.isclose(train[:30], test).all((1, 2, 3)).any()


# -- Captions --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, nouns", [
    ("mnist", DIGITS), ("fashion-mnist", CLOTHES), ("cifar10", THINGS),
    ("drawn", DIGITS), ("coloured-drawn", DIGITS), ("coloured-mnist", DIGITS)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_captions_name_the_labels_in_order_in_known_words(tmp_path, name, nouns, split, few_digits):
    write_mnist(tmp_path, name.removeprefix("coloured-"))
    write_tar(tmp_path / "cifar10" / ARCHIVE, cifar10_batches())
    prompts, (_, labels) = captions(name, split, tmp_path), load_dataset(name, split, tmp_path)
    named = [prompt["digit"] if "digit" in prompt else prompt["label"]
             for prompt in map(attributes, prompts)]
    assert [nouns.index(word) for word in named] == labels.tolist()
    assert (tokenize(prompts)[:, 0] == VOCABULARY.index("a")).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_coloured_images_are_gray_ones_painted_in_the_colours_of_the_captions(split, few_digits):
    gray, images = (load_dataset(name, split)[0] for name in ("drawn", "coloured-drawn"))
    for white, image, prompt in zip(gray[:, 0], images, captions("coloured-drawn", split)):
        for part, value in (("ink", 1), ("paper", -1)):
            colour = (image[:, white == value] + 1) / 2  # (3, P)
            assert torch.equal(colour, colour[:, :1].expand_as(colour))
            distance = (torch.tensor(list(colours.RGB.values())) - colour[:, 0]).norm(dim=1)
            assert list(colours.RGB)[distance.argmin()] == attributes(prompt)[part]


# -- Refusing --------------------------------------------------------------------------------------

@pytest.mark.parametrize("function", [load_dataset, captions])
@pytest.mark.parametrize("name, split, error, sentence", [
    ("minst", "train", UserError, f"no dataset 'minst': choose one of {', '.join(DATASETS)}"),
    ("drawn", "validation", ValueError, "'train' or 'test', not 'validation'")])
def test_an_unknown_dataset_or_split_is_refused(function, name, split, error, sentence):
    with pytest.raises(error, match=sentence):
        function(name, split)


NOT_IDX = "not begin as an IDX file of (28, 28)"


@pytest.mark.parametrize("contents, problem", {
    "empty": ({"images": b""}, NOT_IDX),
    "bad magic": ({"images": b"\0\0\x09\x03" + idx(PIXELS)[4:]}, NOT_IDX),
    "labels": ({"images": idx(LABELS)}, NOT_IDX),
    "html": ({"images": b"<html>not found, but politely</html>"}, NOT_IDX),
    "wrong size": ({"images": idx(PIXELS[:, :27])}, NOT_IDX),
    "no images": ({"images": idx(PIXELS[:0])}, NOT_IDX),
    "huge": ({"images": idx(PIXELS)[:4] + b"\xff" * 4 + idx(PIXELS)[8:16]}, "4294967295 items"),
    "truncated": ({"images": idx(PIXELS)[:-1]}, "the 7 items that it announces"),
    "trailing": ({"images": idx(PIXELS) + b"\0"}, "the 7 items that it announces"),
    "label 10": ({"labels": idx(LABELS + 5)}, "it holds the label 14"),
    "few labels": ({"labels": idx(LABELS[:6])}, "it holds 6 labels, but there are 7 images"),
}.values())
def test_an_idx_file_that_contradicts_itself_is_refused_by_name(tmp_path, contents, problem):
    folder, sentence = write_mnist(tmp_path, **contents), refusal("mnist", "train", tmp_path)
    path = folder / f"train-{'images-idx3' if 'images' in contents else 'labels-idx1'}-ubyte.gz"
    assert f"{path} cannot be read" in sentence and problem in sentence and "delete" in sentence


@pytest.mark.parametrize("change, problem", {
    "empty": (lambda files: files | {"data_batch_4.bin": b""}, "data_batch_4.bin is not"),
    "short": (lambda files: files | {"data_batch_4.bin": b"\1" * 3072}, "data_batch_4.bin is not"),
    "long": (lambda files: files | {"data_batch_4.bin": b"\1" * 3074}, "data_batch_4.bin is not"),
    "label": (lambda files: files | {"data_batch_4.bin": b"\x0a" * 3073}, "the label 10"),
    "missing": (lambda files: {name: files[name] for name in BATCHES if "5" not in name},
                "holds no data_batch_5.bin"),
    "python version": (lambda files: {name[:-4]: files[name] for name in files}, "pickle"),
}.values())
def test_an_archive_without_sound_batches_is_refused_by_name(tmp_path, change, problem):
    write_tar(tmp_path / "cifar10" / ARCHIVE, change(cifar10_batches()))
    sentence = refusal("cifar10", "train", tmp_path)
    assert ARCHIVE in sentence and problem in sentence


@pytest.mark.parametrize("damage", [
    lambda packed: packed[:len(packed) // 2],
    lambda packed: packed[:1000] + b"\xff" * 100 + packed[1100:],
    lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:],
    lambda packed: packed[:5],
    lambda packed: packed[100:],
    lambda packed: b"",
    lambda packed: b"no archive at all" * 1000,
], ids=["cut", "scratched", "checksum", "first bytes", "last bytes", "empty", "no archive"])
@pytest.mark.parametrize("name, file", [("mnist", "train-images-idx3-ubyte.gz"),
                                        ("cifar10", ARCHIVE), ("cifar10", ARCHIVE[:-2] + "xz")])
def test_a_damaged_compressed_file_is_refused_by_name(tmp_path, name, file, damage):
    path = write_mnist(tmp_path, name) / file
    if name == "cifar10":
        write_tar(path, cifar10_batches())
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal(name, "train", tmp_path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_BYTES", 100_000)
    write_mnist(tmp_path, images=idx(PIXELS) + bytes(20_000_000))
    tracemalloc.start()
    sentence, (_, peak) = refusal("mnist", "train", tmp_path), tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "items that it announces" in sentence and peak < 1_000_000  # bytes


@pytest.mark.parametrize("fields, problem", [
    ({"size": 10_000 * 3073 + 1}, "longer than a batch"),
    ({"name": "readme.html", "size": 2**40}, "longer than a batch"),
    ({"size": -512}, "longer than a batch"),  # sends Python 3.11 into an endless loop
    ({"type": tarfile.DIRTYPE}, "holds no test_batch.bin"),
    ({"type": tarfile.SYMTYPE, "linkname": "/etc/hostname"}, "holds no test_batch.bin"),
    ({"type": tarfile.LNKTYPE, "linkname": "/etc/hostname"}, "holds no test_batch.bin"),
    ({"type": tarfile.FIFOTYPE}, "holds no test_batch.bin")])
def test_a_huge_member_is_refused_before_it_is_read_and_only_plain_files_count(
        tmp_path, fields, problem):
    member = tarfile.TarInfo("test_batch.bin")
    for name, value in fields.items():
        setattr(member, name, value)
    path = write_mnist(tmp_path, "cifar10") / ARCHIVE
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    assert problem in refusal("cifar10", "test", tmp_path)


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file_are_named(tmp_path):
    (tmp_path / "fashion-mnist").write_text("a file where a folder should be")
    assert "train-images-idx3-ubyte.gz" in refusal("fashion-mnist", "train", tmp_path)
    for name, file in ("mnist", "train-images-idx3-ubyte.gz"), ("cifar10", ARCHIVE):
        (tmp_path / name / file).mkdir(parents=True)
        sentence = refusal(name, "train", tmp_path)
        assert f"{file} cannot be read" in sentence and "directory" in sentence


# -- Downloading -----------------------------------------------------------------------------------

ERRORS = {"broken": "500 Internal Server Error", "missing": "404 Not Found",
          "circling": "302 Found\r\nLocation: {path}", "babbling": "\0\r\n\r\nblah",
          "astray": "302 Found\r\nLocation: http://[nowhere"}


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serve /good/FILE. Each other folder has a trouble of its own."""

    def do_GET(self):
        _, way, file = self.path.split("/")
        self.server.requests.append(self.path)
        self.server.stop.wait(20 if way == "hanging" else 0)
        content = self.server.files[file]
        header = ERRORS.get(way, f"200 OK\r\nContent-Length: {len(content)}")
        content = {"truncated": content[:-100], "wrong": content[:-1] + b"?",
                   **dict.fromkeys(ERRORS, b"")}.get(way, content)
        self.wfile.write(f"HTTP/1.1 {header.format(path=self.path)}\r\n\r\n".encode())
        for start in range(0, len(content), 100):
            self.wfile.write(content[start:start + 100])
            self.server.stop.wait(0.05 if way == "dripping" else 0)


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """Serve MNIST's four files; call this with the folders that are to be the mirrors."""
    files = {path.name: path.read_bytes() for path in write_mnist(tmp_path / "server").iterdir()}
    md5_of = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.files, server.requests, server.stop = files, [], threading.Event()
        server.handle_error = lambda *_: None  # some tests hang up
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()

        def use(*ways):
            mirrors = [f"http://127.0.0.1:{server.server_address[1]}/{way}/" for way in ways]
            monkeypatch.setitem(downloads.DOWNLOADS, "mnist", (mirrors, md5_of))
            return server

        yield use
        server.stop.set()
        server.shutdown()


@pytest.fixture
def folder(tmp_path):
    """The folder in which MNIST's files arrive."""
    return tmp_path / "data" / "mnist"


@pytest.mark.parametrize("ways", [["good"], ["broken", "good"], ["wrong", "good"]])
def test_missing_files_are_downloaded_once_from_the_first_mirror_that_works(folder, mirror, ways):
    server = mirror(*ways)
    for _ in range(2):
        assert load_dataset("mnist", "train", folder.parent)[1].tolist() == LABELS.tolist()
        datasets.read.cache_clear()
    assert [path.split("/")[1] for path in server.requests] == ways * 2
    assert sorted(path.name[:8] for path in folder.iterdir()) == ["train-im", "train-la"]


@pytest.mark.parametrize("trouble, reason", [
    ("broken", "Internal Server Error"), ("truncated", "md5"), ("wrong", "md5"),
    ("hanging", "timed out"), ("missing", "Not Found"), ("circling", "infinite loop"),
    ("astray", "IPv6"), ("babbling", "HTTP/1.1"), ("endless", "more than 1000 bytes")])
def test_a_failed_download_leaves_nothing_and_gives_the_reason(
        folder, mirror, monkeypatch, trouble, reason):
    mirror(trouble)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.7 if trouble == "hanging" else 5)
    monkeypatch.setattr(downloads, "MAX_BYTES", 1000 if trouble == "endless" else 10_000)
    sentence = refusal("mnist", "train", folder.parent)
    assert not list(folder.iterdir())
    for part in (reason, f"/{trouble}/", "train-images-idx3-ubyte.gz", "'drawn'", str(folder)):
        assert part in sentence


def test_two_programs_can_download_the_same_file_at_once(folder, mirror):
    mirror("good")
    with ThreadPoolExecutor(8) as pool:
        found = [labels for _, labels in pool.map(load_dataset, 8 * ["mnist"], 8 * ["train"],
                                                  8 * [folder.parent])]
    assert torch.equal(torch.stack(found).long(), LABELS.expand(8, -1).long())
    assert sorted(path.name[:8] for path in folder.iterdir()) == ["train-im", "train-la"]


# -- Choosing --------------------------------------------------------------------------------------

def test_auto_and_coloured_take_mnist_if_it_can_be_downloaded(folder, mirror, capsys):
    mirror("good")
    assert choose_dataset("auto", folder.parent) == "mnist"
    assert len(list(folder.iterdir())) == 4  # both splits, so that nothing fails later
    assert choose_dataset("coloured", folder.parent) == "coloured-mnist"
    assert load_dataset("coloured", "test", folder.parent)[0].shape == (7, 3, 28, 28)
    assert "NOT MNIST" not in capsys.readouterr().err


@pytest.mark.parametrize("name, chosen, ways, reason", [
    ("auto", "drawn", ["broken", "truncated"], "Internal Server Error"),
    ("coloured", "coloured-drawn", ["dripping", "good"], "too slow")])
def test_auto_falls_back_to_drawn_digits_with_a_loud_warning(
        folder, mirror, capsys, monkeypatch, name, chosen, ways, reason):
    mirror(*ways)
    monkeypatch.setattr(datasets, "AUTO_SECONDS", 0.3)  # the dripping file would take 2.8 seconds
    assert choose_dataset(name, folder.parent) == chosen and not list(folder.iterdir())
    warning = capsys.readouterr().err
    for part in ("THIS IS NOT MNIST", "draws its own digits", "#" * 60, reason, str(folder)):
        assert part in warning


def test_auto_does_not_hide_damaged_files(tmp_path):
    write_mnist(tmp_path, images=idx(PIXELS)[:-1])
    assert choose_dataset("auto", tmp_path) == "mnist"
    assert "train-images" in refusal("auto", "train", tmp_path)
