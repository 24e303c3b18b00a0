"""Files that are whole or not there, and checkpoints that are read only if they are sound, safe and the right ones."""

import multiprocessing
import os
import pickle
import random
import resource
import zipfile

import pytest
import torch

from minicnet.checkpoints import (
    CheckpointError,
    fingerprint,
    load_base,
    load_checkpoint,
    load_control,
    save_checkpoint,
    schedule_of,
    write_atomically,
    write_json,
)
from minicnet.controlnet import ControlNet
from minicnet.diffusion import NoiseSchedule
from minicnet.runs import open_run
from minicnet.unet import UNet
from minicnet.words import VOCABULARY, tokenize

FILES = ("base.pt", "control.pt", "metrics.json")


@pytest.fixture
def unet(randomised):
    return randomised(UNet(channels=8, multipliers=(1,)))


@pytest.fixture
def base(tmp_path, unet):
    """The path of a base checkpoint."""
    save_checkpoint(tmp_path / "base.pt", {
        "kind": "base", "model": unet.settings, "weights": unet.state_dict(), "vocabulary": list(VOCABULARY),
        "image_shape": [1, 8, 8], "schedule": ["cosine", 1000], "seed": 0, "dataset": "drawn"})
    return tmp_path / "base.pt"


@pytest.fixture
def control(tmp_path, unet, randomised):
    """The path of a control checkpoint for that base."""
    save_checkpoint(tmp_path / "control.pt", {
        "kind": "control", "base": fingerprint(unet), "condition_channels": 3,
        "weights": randomised(ControlNet(unet, condition_channels=3), seed=1).state_dict()})
    return tmp_path / "control.pt"


def change(path, **entries):
    """Replaces entries of a checkpoint. An entry that is to be None is removed."""
    changed = {**torch.load(path, weights_only=True), **entries}
    save_checkpoint(path, {name: value for name, value in changed.items() if value is not None})


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


def refused(match, function, *args, **settings):
    """Asserts that function(...) raises CheckpointError with one sentence in which `match` is found."""
    with pytest.raises(CheckpointError, match=match) as error:
        function(*args, **settings)
    text = str(error.value)
    assert "\n" not in text and 30 < len(text) < 500 and "Error" not in text and "None" not in text


# Writing


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "run" / "deep" / "file"
    for data in (b"first", b"", bytes(range(256)) * 1000):
        write_atomically(path, data)
        assert path.read_bytes() == data and files(path.parent) == ["file"]
    write_json(path, {"a": 1, "b": {"c": 0.5}})
    assert path.read_text() == '{\n  "a": 1,\n  "b": {\n    "c": 0.5\n  }\n}\n'


@pytest.mark.parametrize("old", [True, False])
def test_a_disk_that_fills_half_way_costs_no_old_file_and_leaves_no_partial_one(tmp_path, old):
    if old:
        write_atomically(tmp_path / "file", b"old")
    kept = "the one written before is kept" if old else "nothing was written"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        refused(f"cannot write .*file: File too large; {kept}", write_atomically, tmp_path / "file", bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"] * old


def test_what_a_killed_run_left_half_written_does_no_harm(tmp_path):
    (tmp_path / ".base.pt.partial").write_bytes(bytes(10_000))
    write_atomically(tmp_path / "base.pt", b"new")
    assert files(tmp_path) == ["base.pt"] and (tmp_path / "base.pt").read_bytes() == b"new"


def test_a_folder_given_for_a_file_and_a_file_for_a_folder_are_said_so(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (tmp_path / "note").write_text("a note")
    refused("cannot write .*folder: Is a directory", write_atomically, tmp_path / "folder", b"new")
    refused("Is a directory: .*folder", load_base, tmp_path / "folder")
    refused("cannot write .*base.pt: ", write_atomically, tmp_path / "note" / "base.pt", b"new")
    refused("cannot use .*note as the run folder", open_run, tmp_path / "note", FILES, resume=False)
    assert files(tmp_path) == ["folder", "inside", "note"] and (tmp_path / "note").read_text() == "a note"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_said_so(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    refused("cannot write .*Permission denied; nothing", write_atomically, tmp_path / "run" / "base.pt", b"new")
    refused("cannot use .*Permission denied", open_run, tmp_path / "run" / "deeper", FILES, resume=False)


# There and back


def test_tensors_and_plain_values_come_back_and_can_be_saved_again(tmp_path):
    tensors = [torch.tensor([0.1, -0.0, 1e-45, float("inf")]), torch.randn(4, 6)[::2, 1::2].half(), torch.ones(0, 2)]
    values = {"kind": "x", "text": "ä", "list": [1, 2.5, None, True], "dict": {"step": 0, "loss": 1e-300}}
    saved = {**values, "tensors": tensors}
    for _ in range(2):
        save_checkpoint(tmp_path / "x.pt", saved)
        saved = load_checkpoint(tmp_path / "x.pt", {"kind": "x"})
    assert {name: saved[name] for name in values} == values
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(saved["tensors"], tensors, strict=True))


def test_a_base_and_its_control_come_back_frozen_and_draw_the_same(base, control, unet, randomised):
    net = randomised(ControlNet(unet, condition_channels=3), seed=1)
    loaded_unet, checkpoint = load_base(base, image_shape=[1, 8, 8])
    loaded_net, _ = load_control(control, loaded_unet)
    assert checkpoint["dataset"] == "drawn"
    assert torch.equal(schedule_of(checkpoint).beta, NoiseSchedule.cosine(1000).beta)
    for loaded in (loaded_unet, loaded_net):
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    x_t, t, prompt, c = torch.randn(1, 1, 8, 8), torch.tensor([900]), tokenize(["a seven"]), torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded_unet(x_t, t, prompt, control=loaded_net(x_t, t, prompt, c)),
                       unet(x_t, t, prompt, control=net(x_t, t, prompt, c)))


# Refused


def test_a_file_that_is_not_there_is_named(tmp_path):
    refused("No such file or directory: .*base.pt: train first", load_base, tmp_path / "base.pt")


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04", pickle.dumps({"kind": "base"}, 2)])
def test_what_was_never_a_checkpoint_is_refused_and_left_alone(tmp_path, data):
    (tmp_path / "base.pt").write_bytes(data)
    refused("base.pt is damaged, or no checkpoint of minicnet", load_base, tmp_path / "base.pt")
    assert (tmp_path / "base.pt").read_bytes() == data


@pytest.mark.parametrize("value", [[1], torch.zeros(2), "base", None, {}])
def test_what_torch_saved_for_another_program_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "base.pt")
    refused("base.pt is (damaged, or no|not a base) checkpoint of minicnet", load_base, tmp_path / "base.pt")


class Bomb:
    """What prints when a pickle of it is read."""

    def __reduce__(self):
        return print, ("boom",)


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    torch.save({"kind": "base", "model": Bomb()}, tmp_path / "base.pt")
    refused("base.pt is damaged, or no checkpoint", load_base, tmp_path / "base.pt")
    assert capsys.readouterr().out == ""
    torch.load(tmp_path / "base.pt", weights_only=False)
    assert capsys.readouterr().out == "boom\n"  # read carelessly, it would have


def test_a_compressed_checkpoint_which_may_be_a_bomb_is_not_unpacked(tmp_path, base):
    with zipfile.ZipFile(base) as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name), zipfile.ZIP_DEFLATED)
            archive.getinfo(name).external_attr = 0  # as torch.save writes it
    refused("bomb.pt is damaged, or no checkpoint", load_base, tmp_path / "bomb.pt")


def test_another_kind_of_checkpoint_is_refused(base, control, unet):
    refused("base.pt is not a control checkpoint of minicnet", load_control, base, unet)
    refused("control.pt is not a base checkpoint of minicnet", load_base, control)


def test_what_lacks_an_entry_was_made_by_an_earlier_version(base, control, unet):
    for name in ("model", "weights", "vocabulary", "schedule", "image_shape"):
        contents = base.read_bytes()
        change(base, **{name: None})
        refused(f"base.pt has no '{name}': an earlier version of minicnet made it, so train again",
                lambda: schedule_of(load_base(base, image_shape=[1, 8, 8])[1]))
        base.write_bytes(contents)
    for name in ("base", "weights", "condition_channels"):
        contents = control.read_bytes()
        change(control, **{name: None})
        refused(f"control.pt has no '{name}': an earlier version", load_control, control, unet)
        control.write_bytes(contents)


def test_other_settings_than_those_of_the_run_are_named(base):
    assert load_checkpoint(base, {"kind": "base", "seed": 0, "dataset": "drawn"})["seed"] == 0
    refused("base.pt was made with seed 0 instead of 1, dataset drawn instead of mnist: keep", load_checkpoint,
            base, {"kind": "base", "seed": 1, "dataset": "mnist"})
    refused(r"made with image_shape \[1, 8, 8\] instead of \[3, 32, 32\]", load_base, base, image_shape=[3, 32, 32])


@pytest.mark.parametrize("vocabulary, sentence", [
    (["", "dinosaur", *VOCABULARY[2:]], f"has the word 'dinosaur' where minicnet now has '{VOCABULARY[1]}'"),
    (VOCABULARY[:-1], f"has the word '' where minicnet now has '{VOCABULARY[-1]}'")])
def test_a_base_that_learnt_another_vocabulary_is_refused_by_a_word(base, vocabulary, sentence):
    change(base, vocabulary=list(vocabulary))
    refused(sentence, load_base, base)
    refused(sentence, load_checkpoint, base, {"kind": "base", "vocabulary": list(VOCABULARY)})  # as --resume does


@pytest.mark.parametrize("schedule", [["sigmoid", 1000], ["cosine", 0], ["cosine", "many"], "cosine", 7])
def test_a_schedule_that_makes_no_sense_is_refused(base, schedule):
    change(base, schedule=schedule)
    refused("base.pt names no noise schedule but", lambda: schedule_of(load_base(base)[1]))


@pytest.mark.parametrize("settings", [{"channels": 16}, {"multipliers": [1, 2]}, {"width": 8}, {"channels": "many"}])
def test_weights_of_another_network_than_the_one_described_are_refused(base, unet, settings):
    change(base, model={**unet.settings, **settings})
    refused("base.pt does not fit its network: ", load_base, base)


def test_a_control_serves_another_base_only_if_forced_and_never_one_of_another_shape(control, unet, randomised):
    other = randomised(UNet(**unet.settings), seed=1)
    refused("control.pt was trained for another base", load_control, control, other)
    assert fingerprint(load_control(control, other, force=True)[0]) == fingerprint(load_control(control, unet)[0])
    wide = UNet(channels=16, multipliers=(1,))
    refused("control.pt does not fit its network: size mismatch for", load_control, control, wide, force=True)


def test_damage_anywhere_is_noticed_or_harmless(tmp_path):
    path, draw = tmp_path / "base.pt", random.Random(0)
    weights = torch.randn(20)
    save_checkpoint(path, {"kind": "base", "weights": weights})  # 2 kB: damage falls on every part of the archive
    content = path.read_bytes()
    places = range(0, len(content), 16)
    damaged = [content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1:] for at in places]
    damaged += [content[:at] + bytes(512) + content[at + 512:] for at in places]  # a block that was never written
    mark = content.rindex(b"archive/data/0") - 8  # where the archive says whether the weights are a folder
    damaged += [content[:mark] + b"\x10" + content[mark + 1:], content.replace(weights.numpy().tobytes(), bytes(80))]
    noticed = []
    for data in damaged + [content[:at] for at in places]:
        path.write_bytes(data)
        try:
            assert torch.equal(load_checkpoint(path, {"kind": "base"})["weights"], weights)
            noticed.append(False)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            noticed.append(True)
    assert all(noticed[len(damaged) - 2:]) and sum(noticed) < len(noticed)  # bits between the parts do not matter


# Run folders


def run_in(folder, connection):
    """A run: opens the folder, writes its base, says so, and goes on until it is killed."""
    open_run(folder, FILES, resume=False)
    write_atomically(folder / "base.pt", b"of the first run")
    connection.send("in")
    connection.recv()


@pytest.mark.slow
def test_a_second_run_into_a_folder_is_refused_while_the_first_goes_on(tmp_path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["torch", "torch._dynamo"])  # as in test_faults.py, which shares the server
    mine, its = processes.Pipe()
    process = processes.Process(target=run_in, args=[tmp_path, its])
    process.start()
    assert mine.recv() == "in"
    for resume in (False, True):
        refused("another run is going on in .*: let it end, or", open_run, tmp_path, FILES, resume)
    open_run(tmp_path / "other", FILES, resume=False)
    assert files(tmp_path) == ["base.pt", "other"]  # no lock file
    process.kill()
    process.join()
    for _ in range(2):  # the second time after this very process
        open_run(tmp_path, FILES, resume=True)
    assert (tmp_path / "base.pt").read_bytes() == b"of the first run"


def test_the_files_of_earlier_runs_are_moved_aside(tmp_path, capsys):
    for data in (b"first", b"second", b"third"):
        open_run(tmp_path, FILES, resume=False)
        for name in ("base.pt", "notes"):  # the notes are none of a run's files
            write_atomically(tmp_path / name, data)
    contents = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert contents == {"earlier-1/base.pt": b"first", "earlier-2/base.pt": b"second", "base.pt": b"third",
                        "notes": b"third"}
    assert f"an earlier run was here: it is in {tmp_path / 'earlier-2'}" in capsys.readouterr().out


def test_only_a_run_that_was_started_can_be_resumed(tmp_path):
    refused("there is no run to resume in .*run: leave --resume out", open_run, tmp_path / "run", FILES, resume=True)
    assert files(tmp_path) == []


def test_a_fingerprint_depends_on_every_bit_and_its_place_and_on_nothing_else(unet):
    before = fingerprint(unet)
    for name, parameter in unet.named_parameters():
        bits = parameter.data.view(torch.int32).flatten()
        bits[-1] ^= 1
        assert fingerprint(unet) != before, name
        bits[-1] ^= 1
    assert fingerprint(unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)) == before
    a, b = (torch.nn.Linear(2, 2, bias=False) for _ in range(2))
    assert fingerprint(torch.nn.ModuleDict({"x": a, "y": b})) != fingerprint(torch.nn.ModuleDict({"x": b, "y": a}))
