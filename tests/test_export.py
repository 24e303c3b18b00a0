import pytest
import torch

from minicnet.checkpoints import CheckpointError, fingerprint, load_base, load_control, save_checkpoint
from minicnet.controlnet import ControlNet
from minicnet.export import export
from minicnet.unet import UNet


@pytest.fixture
def run(tmp_path, randomised):
    unet = randomised(UNet(channels=8, multipliers=[1]))
    control_net = randomised(ControlNet(unet))
    save_checkpoint(tmp_path / "run" / "base.pt", {
        "kind": "base", "model": unet.settings, "weights": unet.state_dict()})
    save_checkpoint(tmp_path / "run" / "control.pt", {
        "kind": "control", "condition_channels": 1, "base": fingerprint(unet), "weights": control_net.state_dict()})
    (tmp_path / "run" / "metrics.json").write_text("{}\n")
    return tmp_path / "run"


def test_exported_networks_are_half_as_large_and_nearly_the_same(run, tmp_path):
    export(run, tmp_path / "weights")
    for name in ("base.pt", "control.pt"):
        assert (tmp_path / "weights" / name).stat().st_size < 0.75 * (run / name).stat().st_size
    before, _ = load_base(run / "base.pt")
    after, _ = load_base(tmp_path / "weights" / "base.pt")
    for weight, rounded in zip(before.state_dict().values(), after.state_dict().values()):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, weight, rtol=1e-3, atol=1e-6)
    assert (tmp_path / "weights" / "metrics.json").read_text() == "{}\n"


def test_an_exported_control_belongs_to_the_exported_base_alone(run, tmp_path):
    export(run, tmp_path / "weights")
    load_control(tmp_path / "weights" / "control.pt", load_base(tmp_path / "weights" / "base.pt")[0])
    with pytest.raises(CheckpointError, match="another base"):
        load_control(tmp_path / "weights" / "control.pt", load_base(run / "base.pt")[0])
