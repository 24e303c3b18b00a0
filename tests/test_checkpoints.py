"""Files that are whole or not there, and checkpoints that are read only if they are sound, safe and the right ones."""

import errno
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import zipfile

import pytest
import torch

from minicnet import checkpoints
from minicnet.checkpoints import (
    CheckpointError,
    fingerprint,
    load_base,
    load_checkpoint,
    load_control,
    open_run,
    save_checkpoint,
    write_atomically,
    write_json,
)
from minicnet.controlnet import ControlNet
from minicnet.unet import UNet

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
PROCESSES = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo"])  # imported once for all processes


def base_checkpoint(unet):
    return {"kind": "base", "model": unet.settings, "weights": unet.state_dict(), "seed": 0, "dataset": "drawn"}


def control_checkpoint(control_net, unet):
    return {"kind": "control", "base": fingerprint(unet), "condition_channels": 1, "weights": control_net.state_dict()}


@pytest.fixture
def unet(randomised):
    return randomised(UNet(channels=8, multipliers=(1,), num_labels=3))


@pytest.fixture
def saved(tmp_path, unet):
    save_checkpoint(tmp_path / "base.pt", base_checkpoint(unet))
    return tmp_path / "base.pt"


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


def is_a_sentence(error):
    text = str(error.value)
    return "\n" not in text and len(text) > 30 and "Error" not in text and "None" not in text


# Writing


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "run" / "deep" / "file"
    for data in (b"first", b"", bytes(range(256)) * 1000):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert files(path.parent) == ["file"]


def test_json_is_written_readable(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1, "b": {"c": 0.5}})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1,\n  "b": {\n    "c": 0.5\n  }\n}\n'


def test_the_bytes_are_on_the_disk_before_they_take_the_old_ones_place(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    write_atomically(path, b"old")
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(("fsync", os.fstat(fd).st_size)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(("replace", path.read_bytes())), replace(a, b)))
    write_atomically(path, b"all new")
    assert seen == [("fsync", 7), ("replace", b"old")]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("old", [True, False])
def test_a_full_disk_costs_neither_the_old_file_nor_leaves_half_a_new_one(tmp_path, monkeypatch, function, old):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if old:
        write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(os, function, full)
    kept = "the one written before is kept" if old else "nothing was written"
    with pytest.raises(CheckpointError, match=f"cannot write .*file: No space left on device; {kept}") as error:
        write_atomically(tmp_path / "file", b"new")
    assert is_a_sentence(error)
    assert files(tmp_path) == ["file"] * old
    assert not old or (tmp_path / "file").read_bytes() == b"old"


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path, monkeypatch):
    def killed(fd):
        raise KeyboardInterrupt

    write_atomically(tmp_path / "file", b"old")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "fsync", killed)
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    write_atomically(tmp_path / "file", b"new")
    assert files(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_that_is_a_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "run").write_text("a note")
    with pytest.raises(CheckpointError, match="cannot write") as error:
        write_atomically(tmp_path / "run" / "base.pt", b"new")
    assert is_a_sentence(error)
    assert (tmp_path / "run").read_text() == "a note"


def test_a_file_that_is_a_folder_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "base.pt" / "inside").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot write .*base.pt: Is a directory") as error:
        write_atomically(tmp_path / "base.pt", b"new")
    assert is_a_sentence(error)
    assert files(tmp_path) == ["base.pt", "inside"]


def test_a_file_size_limit_met_half_way_costs_neither_the_old_file_nor_leaves_half_a_new_one(tmp_path):
    write_atomically(tmp_path / "file", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot write .*file: File too large; the one written") as error:
            write_atomically(tmp_path / "file", bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_a_sentence(error)
    assert files(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("left", [b"", b"half of a checkp", bytes(10_000)])
def test_what_a_killed_run_left_half_written_does_no_harm(tmp_path, left):
    (tmp_path / ".base.pt.partial").write_bytes(left)
    write_atomically(tmp_path / "base.pt", b"new")
    assert files(tmp_path) == ["base.pt"] and (tmp_path / "base.pt").read_bytes() == b"new"


@pytest.mark.skipif(AS_ROOT, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot write .*Permission denied; nothing was written") as error:
        write_atomically(tmp_path / "run" / "base.pt", b"new")
    assert is_a_sentence(error)


# There and back


def test_tensors_and_plain_values_come_back_to_the_last_bit(tmp_path):
    tensors = [torch.tensor([0.1, -0.0, 1e-45, 3e38, float("inf"), float("nan")]), torch.randn(3, 4).bfloat16(),
               torch.tensor([[2**62, -1]]), torch.zeros(0, 2), torch.tensor(True), torch.randn(4, 6)[::2, 1::2]]
    values = {"text": "ä", "list": [1, 2.5, None, True], "dict": {"step": 0, "loss": 1e-300}}
    save_checkpoint(tmp_path / "a.pt", {"kind": "x", "tensors": tensors, **values})
    loaded = load_checkpoint(tmp_path / "a.pt", {"kind": "x"})
    assert {name: loaded[name] for name in values} == values
    for a, b in zip(tensors, loaded["tensors"], strict=True):
        assert (a.dtype, a.shape, b.device.type) == (b.dtype, b.shape, "cpu")
        assert a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))


def test_a_base_comes_back_frozen_and_draws_the_same(saved, unet):
    loaded, checkpoint = load_base(saved)
    assert checkpoint["dataset"] == "drawn"
    assert loaded.settings == unet.settings and fingerprint(loaded) == fingerprint(unet)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    x_t, t, label = torch.randn(2, 1, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 3])
    assert torch.equal(loaded(x_t, t, label), unet(x_t, t, label))


def test_a_control_comes_back_frozen_and_controls_the_same(tmp_path, unet, randomised):
    control_net = randomised(ControlNet(unet))
    save_checkpoint(tmp_path / "control.pt", control_checkpoint(control_net, unet))
    loaded, _ = load_control(tmp_path / "control.pt", unet)
    assert fingerprint(loaded) == fingerprint(control_net)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 3]), torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded(*inputs).middle, control_net(*inputs).middle)


def test_a_control_of_three_channels_comes_back(tmp_path, unet):
    checkpoint = control_checkpoint(ControlNet(unet, condition_channels=3), unet)
    save_checkpoint(tmp_path / "control.pt", {**checkpoint, "condition_channels": 3})
    loaded, _ = load_control(tmp_path / "control.pt", unet)
    assert loaded.encode(torch.rand(1, 3, 8, 8)).shape == (1, 8, 4, 4)


# Refused


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no .*base.pt: train first") as error:
        load_base(tmp_path / "base.pt")
    assert is_a_sentence(error)


def refused(path, data, sentence="is damaged, or no checkpoint of minicnet"):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{path.name} {sentence}") as error:
        load_checkpoint(path, {"kind": "base"})
    assert is_a_sentence(error)
    assert path.read_bytes() == data


@pytest.mark.parametrize("data", [
    b"", b"\0", b"not a checkpoint", b"{}", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", bytes(range(256)) * 20,
    pickle.dumps({"kind": "base"}, 2), pickle.dumps(None, 2)])
def test_what_was_never_a_checkpoint_is_refused(tmp_path, data):
    refused(tmp_path / "base.pt", data)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_half_a_checkpoint_is_refused(saved, share):
    data = saved.read_bytes()
    refused(saved, data[:int(share * len(data))])


@pytest.mark.parametrize("content", [
    b"\x80\x02.",  # takes from an empty stack
    b"\x80\x02G\x00.",  # a float of one byte
    b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",  # OrderedDict(1)
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01K\x01K\x01tR."])  # a tensor of the storage 1
def test_a_checkpoint_with_broken_content_is_refused(saved, content):
    broken = io.BytesIO()
    with zipfile.ZipFile(saved) as whole, zipfile.ZipFile(broken, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, content if name.endswith("/data.pkl") else whole.read(name))
    refused(saved, broken.getvalue())


class Bomb:
    """What runs when a pickle of it is read: open(path, "w")."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb, 2))])
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"kind": "base", "model": bomb, "weights": {}}])
def test_a_checkpoint_cannot_run_code(tmp_path, write, wrap):
    write(wrap(Bomb(tmp_path / "boom")), tmp_path / "base.pt")
    with pytest.raises(CheckpointError, match="base.pt is damaged, or no checkpoint"):
        load_base(tmp_path / "base.pt")
    assert not (tmp_path / "boom").exists()
    if write is torch.save:
        torch.load(tmp_path / "base.pt", weights_only=False)
    else:
        pickle.loads((tmp_path / "base.pt").read_bytes())
    assert (tmp_path / "boom").exists()  # read carelessly, it would have


@pytest.mark.parametrize("value", [{"kind": "control"}, {}, [1], torch.zeros(2), "base", None])
def test_another_kind_of_checkpoint_is_refused(tmp_path, value):
    save_checkpoint(tmp_path / "base.pt", value)
    with pytest.raises(CheckpointError, match="base.pt is not a base checkpoint of minicnet") as error:
        load_base(tmp_path / "base.pt")
    assert is_a_sentence(error)


def test_a_base_is_not_a_control(saved, unet):
    with pytest.raises(CheckpointError, match="is not a control checkpoint"):
        load_control(saved, unet)


def test_a_run_with_other_settings_is_refused_and_told_which(saved):
    assert load_checkpoint(saved, {"kind": "base", "seed": 0, "dataset": "drawn"})["seed"] == 0
    with pytest.raises(CheckpointError, match="made with seed 0 instead of 1, dataset drawn instead of mnist: go"):
        load_checkpoint(saved, {"kind": "base", "seed": 1, "dataset": "mnist"})
    with pytest.raises(CheckpointError, match="steps None instead of 5"):
        load_checkpoint(saved, {"kind": "base", "seed": 0, "steps": 5})


@pytest.mark.parametrize("name", ["model", "weights"])
def test_a_base_that_lacks_something_is_refused(tmp_path, unet, name):
    checkpoint = base_checkpoint(unet)
    del checkpoint[name]
    save_checkpoint(tmp_path / "base.pt", checkpoint)
    with pytest.raises(CheckpointError, match="base.pt does not hold the weights of the network") as error:
        load_base(tmp_path / "base.pt")
    assert is_a_sentence(error)


@pytest.mark.parametrize("changes", [
    {"channels": 16}, {"multipliers": [1, 2]}, {"in_channels": 3}, {"num_labels": 4}, {"patch": 1}, {"width": 8},
    {"channels": "many"}, {"channels": 12}, {"multipliers": []}])
def test_weights_of_another_network_than_the_one_described_are_refused(tmp_path, unet, changes):
    save_checkpoint(tmp_path / "base.pt", {**base_checkpoint(unet), "model": {**unet.settings, **changes}})
    with pytest.raises(CheckpointError, match="does not hold the weights of the network it is for") as error:
        load_base(tmp_path / "base.pt")
    assert is_a_sentence(error)


@pytest.mark.parametrize("change", [
    lambda checkpoint: checkpoint.pop("weights"),
    lambda checkpoint: checkpoint.pop("condition_channels"),
    lambda checkpoint: checkpoint.update(condition_channels=3),
    lambda checkpoint: checkpoint.update(weights=[1, 2]),
    lambda checkpoint: checkpoint["weights"].popitem(),
    lambda checkpoint: checkpoint["weights"].update(more=torch.zeros(1))])
def test_a_control_that_lacks_something_is_refused(tmp_path, unet, change):
    checkpoint = control_checkpoint(ControlNet(unet), unet)
    change(checkpoint)
    save_checkpoint(tmp_path / "control.pt", checkpoint)
    with pytest.raises(CheckpointError, match="control.pt does not hold the weights of the network") as error:
        load_control(tmp_path / "control.pt", unet)
    assert is_a_sentence(error)


def test_a_control_made_for_another_base_is_refused(tmp_path, unet, randomised):
    other = randomised(UNet(channels=8, multipliers=(1,), num_labels=3), seed=1)
    save_checkpoint(tmp_path / "control.pt", control_checkpoint(ControlNet(unet), unet))
    load_control(tmp_path / "control.pt", unet)
    with pytest.raises(CheckpointError, match="control.pt was trained for another base") as error:
        load_control(tmp_path / "control.pt", other)
    assert is_a_sentence(error)


def test_a_control_may_be_forced_on_another_base_of_its_shape(tmp_path, unet, randomised):
    other = randomised(UNet(**unet.settings), seed=1)
    control_net = randomised(ControlNet(unet), seed=2)
    save_checkpoint(tmp_path / "control.pt", control_checkpoint(control_net, unet))
    forced, checkpoint = load_control(tmp_path / "control.pt", other, force=True)
    assert checkpoint["base"] == fingerprint(unet) != fingerprint(other)
    assert fingerprint(forced) == fingerprint(control_net)
    assert not forced.training and not any(p.requires_grad for p in forced.parameters())


@pytest.mark.parametrize("changes, sentence", [
    ({"channels": 16}, r"encoder.time.0.weight is \(32, 8\) in the file and \(64, 16\) in the network"),
    ({"in_channels": 3}, r"encoder.conv_in.weight is \(8, 4, 3, 3\) in the file and \(8, 12, 3, 3\) in the network"),
    ({"num_labels": 4}, r"encoder.label.weight is \(4, 32\) in the file and \(5, 32\) in the network"),
    ({"multipliers": (1, 2)}, r"encoder.stages.1.conv.weight is missing in the file and \(8, 8, 3, 3\) in the network"),
    ({"blocks": 2}, r"encoder.stages.1.0.norm1.weight is missing in the file and \(8,\) in the network")])
def test_a_control_cannot_be_forced_on_a_base_of_another_shape(tmp_path, unet, changes, sentence):
    save_checkpoint(tmp_path / "control.pt", control_checkpoint(ControlNet(unet), unet))
    with pytest.raises(CheckpointError, match=f"control.pt does not hold the weights .*: {sentence}$") as error:
        load_control(tmp_path / "control.pt", UNet(**{**unet.settings, **changes}), force=True)
    assert is_a_sentence(error)


# Damaged at any place


def same(a, b):
    """Whether two checkpoints are equal to the last bit."""
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def read_or_refused(path, whole):
    """Whether the checkpoint was read; then it must be the whole one. If not, it must be refused with a sentence."""
    try:
        checkpoint = load_checkpoint(path, {"kind": "base"})
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return False
    assert same(checkpoint, whole)
    return True


@pytest.fixture
def small(tmp_path):
    """A checkpoint of 2 kB: damages at random hit every part of it, the zip archive's table of contents included."""
    save_checkpoint(tmp_path / "base.pt", {"kind": "base", "weights": {"a": torch.randn(20), "b": torch.randn(3, 2)}})
    return tmp_path / "base.pt"


def test_flipped_bits_are_noticed_wherever_they_are(small):
    draw, content, whole = random.Random(0), small.read_bytes(), load_checkpoint(small, {"kind": "base"})
    places = [[place] for place in range(len(content))]
    places += [draw.choices(range(len(content)), k=draw.randrange(1, 9)) for _ in range(500)]
    read = 0
    for flips in places:
        flipped = bytearray(content)
        for place in flips:
            flipped[place] ^= 1 << draw.randrange(8)
        small.write_bytes(flipped)
        read += read_or_refused(small, whole)
    assert 0.1 < read / len(places) < 0.7  # dates and the filling between the parts, for example, do not matter


def test_a_part_marked_as_a_folder_is_noticed(small):
    """torch.load would not read it, and return what happened to lie in memory."""
    content = bytearray(small.read_bytes())
    entry = next(i for i in range(len(content)) if content[i:i + 4] == b"PK\1\2" and content[i + 46:].startswith(
        b"archive/data/0"))
    content[entry + 38] ^= 0x10
    refused(small, bytes(content))


def test_a_file_cut_short_lengthened_or_overwritten_anywhere_is_noticed(small):
    draw, content, whole = random.Random(1), small.read_bytes(), load_checkpoint(small, {"kind": "base"})
    for at in range(0, len(content), 4):
        scratch = draw.choice([draw.randbytes(draw.randrange(1, 600)), bytes(512)])  # as a block that was never written
        for damaged in (content[:at] + scratch + content[at + len(scratch):], content[:at] + content):
            small.write_bytes(damaged)
            read_or_refused(small, whole)
        small.write_bytes(content[:at])
        assert not read_or_refused(small, whole)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "base.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    refused(tmp_path / "base.pt", (tmp_path / "base.pt").read_bytes())


# Run folders


FILES = ("base.pt", "control.pt", "metrics.json")


def run_in(folder, connection):
    """A run: opens the folder, writes its base, says so, and goes on until it is told to end."""
    open_run(folder, FILES, resume=False)
    write_atomically(folder / "base.pt", b"of the first run")
    connection.send("in")
    connection.recv()


@pytest.mark.parametrize("end", ["told to end", "killed"])
def test_a_second_run_into_a_folder_is_refused_while_the_first_goes_on(tmp_path, end):
    (tmp_path / "base.pt").write_bytes(b"of an earlier run")
    mine, its = PROCESSES.Pipe()
    process = PROCESSES.Process(target=run_in, args=[tmp_path, its])
    process.start()
    assert mine.recv() == "in"
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="another run is going on in .*: let it end, or choose") as error:
            open_run(tmp_path, FILES, resume)
        assert is_a_sentence(error)
    assert files(tmp_path) == ["base.pt", "base.pt", "earlier-1"]
    assert (tmp_path / "base.pt").read_bytes() == b"of the first run"
    open_run(tmp_path / "other", FILES, resume=False)
    if end == "killed":
        process.kill()
    else:
        mine.send("end")
    process.join()
    assert process.exitcode == (-signal.SIGKILL if end == "killed" else 0)
    assert open_run(tmp_path, FILES, resume=True) == {}
    open_run(tmp_path, FILES, resume=False)  # and once more, in this process
    assert files(tmp_path) == ["base.pt", "base.pt", "earlier-1", "earlier-2", "other"]


def test_runs_work_where_there_are_no_locks(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(checkpoints.fcntl, "flock", no_locks)
    assert open_run(tmp_path / "a", FILES, resume=False) == {}
    monkeypatch.setattr(checkpoints, "fcntl", None)
    assert open_run(tmp_path / "b", FILES, resume=False) == {}


def test_the_seconds_of_a_stopped_run_come_back(tmp_path):
    (tmp_path / "base.pt").touch()
    assert open_run(tmp_path, FILES, resume=True) == {}
    write_json(tmp_path / "metrics.json", {"seconds": {"base": 12.5, "control": 3}, "date": "2026-01-01"})
    assert open_run(tmp_path, FILES, resume=True) == {"base": 12.5, "control": 3}


@pytest.mark.parametrize("content", [
    b"", b"null", b"[]", b"{}", b'{"seconds": 5}', b'{"seconds": [1]}', b'{"seconds": {"base": "x"}}', b"\xff",
    b"[" * 10**5, b'{"seconds": {"base": null}}', b'{"seconds": {"base": 1' + b"0" * 400 + b"}}"])
def test_damaged_metrics_are_named(tmp_path, content):
    (tmp_path / "base.pt").touch()
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="metrics.json is damaged: delete it, and --resume goes on") as error:
        open_run(tmp_path, FILES, resume=True)
    assert is_a_sentence(error)


def test_metrics_cut_short_anywhere_are_noticed(tmp_path):
    (tmp_path / "base.pt").touch()
    whole = json.dumps({"seconds": {"base": 12.5, "control": 3.25}}).encode()
    for length in range(len(whole)):
        (tmp_path / "metrics.json").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="metrics.json is damaged"):
            open_run(tmp_path, FILES, resume=True)


# Fingerprints


def test_one_bit_anywhere_changes_the_fingerprint(unet):
    before = fingerprint(unet)
    assert len(before) == 16 and int(before, 16) >= 0
    for name, parameter in unet.named_parameters():
        bits = parameter.data.view(torch.int32).flatten()
        bits[-1] ^= 1
        assert fingerprint(unet) != before, name
        bits[-1] ^= 1
    assert fingerprint(unet) == before


def test_the_same_numbers_in_another_place_have_another_fingerprint():
    a, b = (torch.nn.Linear(2, 2, bias=False) for _ in range(2))
    assert fingerprint(torch.nn.ModuleDict({"x": a, "y": b})) != fingerprint(torch.nn.ModuleDict({"x": b, "y": a}))
    assert fingerprint(torch.nn.ModuleDict({"x": a})) != fingerprint(torch.nn.ModuleDict({"y": a}))


def test_a_copy_in_another_mode_or_memory_layout_has_the_same_fingerprint(unet):
    other = UNet(**unet.settings)
    other.load_state_dict(unet.state_dict())
    other.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    assert fingerprint(other) == fingerprint(unet)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_fingerprint_does_not_depend_on_the_device(unet):
    assert fingerprint(unet) == fingerprint(unet.cuda())


def test_what_was_trained_on_a_gpu_is_read_where_there_is_none(saved, monkeypatch):
    def load(*args, **kwargs):
        asked.update(kwargs)
        return torch_load(*args, **kwargs)

    asked, torch_load = {}, torch.load
    monkeypatch.setattr(checkpoints.torch, "load", load)
    load_base(saved)
    assert asked == {"map_location": "cpu", "weights_only": True}
