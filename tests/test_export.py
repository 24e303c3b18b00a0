import pytest
import torch

from minicnet.checkpoints import CheckpointError, fingerprint, load_base, load_control, save_checkpoint
from minicnet.controlnet import ControlNet
from minicnet.export import export
from minicnet.unet import UNet
from minicnet.words import VOCABULARY


@pytest.fixture
def runs(tmp_path, randomised):
    """Two runs with one base: one for edges, one for colours."""
    unet = randomised(UNet(channels=8, multipliers=(1,)))
    for seed, (name, condition) in enumerate([("edges", "canny"), ("colours", "colour")]):
        save_checkpoint(tmp_path / name / "base.pt", {
            "kind": "base", "model": unet.settings, "vocabulary": list(VOCABULARY), "weights": unet.state_dict()})
        save_checkpoint(tmp_path / name / "control.pt", {
            "kind": "control", "condition": condition, "condition_channels": 1, "base": fingerprint(unet),
            "weights": randomised(ControlNet(unet), seed=seed).state_dict()})
        (tmp_path / name / "metrics.json").write_text(f'"{name}"\n')
    return [tmp_path / "edges", tmp_path / "colours"]


def test_exported_networks_are_half_as_large_nearly_the_same_and_belong_to_the_exported_base_alone(runs, tmp_path):
    weights = tmp_path / "weights"
    export(weights, *runs)
    for before, after in [(runs[0] / "base.pt", weights / "base.pt"), (runs[0] / "control.pt", weights / "canny.pt"),
                          (runs[1] / "control.pt", weights / "colour.pt")]:
        assert after.stat().st_size < 0.75 * before.stat().st_size
        before, after = (torch.load(path, weights_only=True)["weights"] for path in (before, after))
        for name, weight in before.items():
            assert after[name].dtype == torch.float16
            torch.testing.assert_close(after[name].float(), weight, rtol=1e-3, atol=1e-6)
    assert [(weights / name).read_text() for name in ("canny.json", "colour.json")] == ['"edges"\n', '"colours"\n']

    for name in ("canny.pt", "colour.pt"):
        load_control(weights / name, load_base(weights / "base.pt")[0])
        with pytest.raises(CheckpointError, match="another base"):
            load_control(weights / name, load_base(runs[0] / "base.pt")[0])


@pytest.mark.parametrize("stopped", ["base.pt", "control.pt", "metrics.json"])
def test_a_run_that_was_stopped_is_not_exported(runs, tmp_path, stopped):
    if stopped == "metrics.json":
        (runs[1] / stopped).unlink()
    else:
        checkpoint = torch.load(runs[0] / stopped, weights_only=True)
        save_checkpoint(runs[0] / stopped, {**checkpoint, "training": {}})
    with pytest.raises(CheckpointError, match="is not finished: --resume it first"):
        export(tmp_path / "weights", *runs)
    assert not (tmp_path / "weights").exists()


def test_runs_of_different_bases_are_not_exported_together(runs, tmp_path, randomised):
    other = randomised(UNet(channels=8, multipliers=(1,)), seed=9)
    control = torch.load(runs[1] / "control.pt", weights_only=True)
    save_checkpoint(runs[1] / "control.pt", {**control, "base": fingerprint(other)})
    with pytest.raises(CheckpointError, match="another base"):
        export(tmp_path / "weights", *runs)
    assert not (tmp_path / "weights").exists()
