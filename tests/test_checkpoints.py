"""Files are whole or not there; a checkpoint is loaded only if it is sound, safe and the one."""

import contextlib
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from saved import change, contents, save_networks

from minicnet.checkpoints import (
    check_writable,
    fingerprint,
    load_base,
    load_checkpoint,
    load_control,
    save_checkpoint,
    write_atomically,
)
from minicnet.errors import UserError
from minicnet.runs import open_run
from minicnet.unet import UNet
from minicnet.words import VOCABULARY

FILES = ("base.pt", "control.pt", "metrics.json")


@pytest.fixture
def base(tmp_path, unet):
    """The path of a base's checkpoint."""
    return save_networks(tmp_path, unet, {}, size=8) / "base.pt"


@pytest.fixture
def control(tmp_path, unet, nets):
    """The path of the checkpoint of a control for that base."""
    return save_networks(tmp_path, unet, {"canny": nets[0]}, size=8) / "canny.pt"


def refused(match, function, *args, **settings):
    """Assert that function(...) raises a UserError whose single sentence matches."""
    with pytest.raises(UserError, match=match) as error:
        function(*args, **settings)
    text = str(error.value)
    assert "\n" not in text and 30 < len(text) < 500 and "Error" not in text


# -- Files -------------------------------------------------------------------------------------


def test_two_writers_of_a_linked_file_never_show_a_torn_file_to_a_reader(tmp_path):
    path, link = tmp_path / "deep" / "file", tmp_path / "link"
    versions = [b"a" * 100_000, b"b" * 100_000]
    link.symlink_to(path)
    write_atomically(link, versions[0])

    def write(content):
        for _ in range(30):
            write_atomically(link, content)

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, content) for content in versions]
        while not all(writer.done() for writer in writers):
            assert path.read_bytes() in versions
    assert [writer.result() for writer in writers] == [None, None]
    assert link.is_symlink() and [*contents(tmp_path / "deep")] == ["file"]


def test_a_disk_that_fills_half_way_keeps_the_old_file_and_leaves_no_partial_one(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_atomically(tmp_path / "file", b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for name, kept in (("file", "the file that was there is kept"), ("new", "nothing was")):
            refused(f"too large.*{kept}", write_atomically, tmp_path / name, bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path) == {"file": b"old"}


# -- Checkpoints -------------------------------------------------------------------------------


def test_a_base_and_its_control_come_back_with_the_same_weights_and_frozen(
        base, control, unet, nets):
    loaded_unet, _ = load_base(base, image_shape=[1, 8, 8])
    loaded_net, _ = load_control(control, loaded_unet)
    for loaded, saved in ((loaded_unet, unet), (loaded_net, nets[0])):
        assert fingerprint(loaded.state_dict()) == fingerprint(saved.state_dict())
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


class Bomb:
    """A value whose pickle prints when it is read."""

    def __reduce__(self):
        return print, ("boom",)


@pytest.mark.parametrize("value", [b"", b"not a checkpoint", b"PK\x03\x04", pickle.dumps({}), [1],
                                   torch.zeros(2), {}, {"kind": "base", "model": Bomb()}])
def test_what_another_program_saved_is_refused_and_cannot_run_code(tmp_path, capsys, value):
    if isinstance(value, bytes):
        (tmp_path / "base.pt").write_bytes(value)
    else:
        torch.save(value, tmp_path / "base.pt")
    refused("base.pt is (damaged|no checkpoint of a base)", load_base, tmp_path / "base.pt")
    assert capsys.readouterr().out == ""


def test_a_compressed_checkpoint_which_could_fill_the_memory_is_not_unpacked(tmp_path, base):
    with zipfile.ZipFile(base) as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name), zipfile.ZIP_DEFLATED)
            archive.getinfo(name).external_attr = 0  # as torch.save writes it
    refused("bomb.pt is damaged", load_base, tmp_path / "bomb.pt")


NAN = {"encoder.conv_in.bias": torch.full((8,), float("nan"))}


@pytest.mark.parametrize("name, entries, match", [
    *(("base", {name: None}, f"no entry '{name}'") for name in ("model", "weights", "image_shape")),
    *(("control", {name: None}, f"no entry '{name}'")
      for name in ("base", "weights", "condition_channels")),
    ("base", {"kind": "control"}, "no checkpoint of a base"),
    ("base", {"format": 1}, "another version of minicnet.*train again"),
    ("base", {"format": torch.ones(2)}, "another version"),  # a tensor has no single truth value
    *(("base", {"vocabulary": words}, "another version")
      for words in (5, torch.ones(2), ["", "dinosaur", *VOCABULARY[2:]])),
    ("base", {"dataset": 7}, "'dataset' is not a str"),
    ("base", {"history": "abc"}, "'history' is not a list"),
    *(("base", {"history": log}, "'history' is no log of its training") for log in (
        [], [1], [{}], [{"step": 1}], [{"heldout_loss": 0.5}],
        [{"step": "1", "heldout_loss": 0.5}], [{"step": 1, "heldout_loss": float("nan")}],
        [{"step": 10**400, "heldout_loss": 0.5}],
        [{"step": 1, "heldout_loss": 0.5}, {"step": 2, "heldout_loss": torch.ones(2)}])),
    ("base", {"image_shape": "abc"}, "'image_shape' is not a list"),
    ("base", {"image_shape": [1, 8, 10**9]}, "no possible image_shape"),
    ("base", {"image_shape": [3, 8, 8]}, "no possible image_shape"),
    ("base", {"model": {"channels": "many"}}, "does not fit its network"),
    ("base", {"model": {"channels": 16}}, "does not fit its network"),
    ("base", {"model": {"width": 8}}, "does not fit its network"),
    ("base", {"weights": NAN}, "not finite"),
    ("base", {"weights": {"a": torch.ones(2).to_sparse()}}, "not finite"),
    ("base", {"weights": {"a": [1]}}, "not finite"),
    ("control", {"weights": NAN}, "not finite"),
    ("control", {"condition": ["canny"]}, "'condition' is not a str"),
    ("control", {"condition": "../../escaped"}, "unknown condition"),
    ("control", {"condition": "$\\frac{$"}, "unknown condition"),
    ("control", {"condition_channels": -1}, "does not fit its network"),
])
def test_a_checkpoint_with_an_odd_entry_is_refused(base, control, unet, name, entries, match):
    change({"base": base, "control": control}[name], **entries)
    refused(match, lambda: load_control(control, load_base(base)[0]))


@pytest.mark.parametrize("entries", [
    {"seed": 1}, {"seed": torch.ones(2)}, {"image_shape": [torch.ones(2)]}])
def test_a_checkpoint_that_was_made_with_other_settings_is_refused(base, entries):
    change(base, **entries)
    refused(f"was made with {next(iter(entries))}", load_checkpoint, base,
            {"kind": "base", "image_shape": [1, 8, 8], "seed": 0})


def test_a_control_serves_another_base_only_by_force_and_never_one_of_another_shape(
        control, unet, nets, randomised):
    other = randomised(UNet(**unet.settings), seed=9)
    refused("canny.pt was trained for another base", load_control, control, other)
    net, _ = load_control(control, other, force=True)
    assert fingerprint(net.state_dict()) == fingerprint(nets[0].state_dict())
    refused("does not fit its network .size mismatch", load_control, control,
            UNet(channels=16, multipliers=(1,)), force=True)


def test_damage_anywhere_is_noticed_or_harmless(tmp_path):
    path, weights = tmp_path / "base.pt", torch.randn(20)
    save_checkpoint(path, {"kind": "base", "weights": {"w": weights}})
    content = path.read_bytes()
    for at in range(0, len(content), 32):
        flipped = bytes([content[at] ^ 1 << at // 32 % 8])
        for damaged in (content[:at], content[:at] + flipped + content[at + 1:],
                        content[:at] + bytes(512) + content[at + 512:]):  # was never written
            path.write_bytes(damaged)
            with contextlib.suppress(UserError):
                loaded = load_checkpoint(path, {"kind": "base"})
                assert torch.equal(loaded["weights"]["w"], weights) and damaged != content[:at]
    mark = content.rindex(b"archive/data/0") - 8  # where the archive says whether this is a folder
    for damaged in (content[:mark] + b"\x10" + content[mark + 1:],
                    content.replace(weights.numpy().tobytes(), bytes(80))):
        path.write_bytes(damaged)
        refused("base.pt is damaged", load_checkpoint, path, {"kind": "base"})


def test_a_fingerprint_depends_on_every_bit_and_name_but_not_on_the_memory_layout(unet):
    weights = unet.state_dict()
    found = [fingerprint(weights)]
    for weight in weights.values():
        weight.view(torch.int32).view(-1)[-1] ^= 1
        found.append(fingerprint(weights))
    assert len(set(found)) == 1 + len(weights)
    assert fingerprint(unet.to(memory_format=torch.channels_last).state_dict()) == found[-1]
    a, b = torch.zeros(2), torch.ones(2)
    assert fingerprint({"a": a, "b": b}) != fingerprint({"b": a, "a": b})


# -- Run folders -------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_while_the_first_goes_on(tmp_path):
    fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")
    first = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)  # as another process holds it
    refused("another run is going on in", open_run, tmp_path, FILES, resume=False)
    os.close(first)  # as the end of a process does
    open_run(tmp_path, FILES, resume=False)
    assert contents(tmp_path) == {}  # no lock file


def test_the_files_of_earlier_runs_are_moved_aside(tmp_path, capsys):
    for data in (b"first", b"second", b"third"):
        open_run(tmp_path, FILES, resume=False)
        for name in ("base.pt", "notes"):  # the notes are no file of a run
            write_atomically(tmp_path / name, data)
    assert contents(tmp_path) == {"base.pt": b"third", "notes": b"third",
                                  "earlier-1/base.pt": b"first", "earlier-2/base.pt": b"second"}
    assert f"its files are in {tmp_path / 'earlier-2'} now" in capsys.readouterr().out


def test_what_a_kill_within_a_save_left_behind_is_removed_and_no_other_hidden_file_is(
        tmp_path, monkeypatch):
    of_the_user = dict.fromkeys(("base.pt", ".base.pt", ".base.pt.swp", ".notes"), b"of the user")
    for name in of_the_user:
        (tmp_path / name).write_bytes(b"of the user")
    with monkeypatch.context() as kill, pytest.raises(TypeError):  # which nothing catches
        kill.setattr(os, "fsync", None)
        write_atomically(tmp_path / "base.pt", b"new")
    (tmp_path / f"..base.pt.{'0a' * 16}").touch()  # of a kill within `check_writable`
    assert len(contents(tmp_path)) == 6
    check_writable(tmp_path / "base.pt")
    open_run(tmp_path, FILES, resume=True)
    assert contents(tmp_path) == of_the_user
