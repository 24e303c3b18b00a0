"""Fine-tuning with the condition as input channels, and the experiment on how many images a control needs."""

import json
import math

import pytest
import torch

from minicnet.digits import draw_digits
from minicnet.experiments import data_size
from minicnet.experiments import lab as lab_module
from minicnet.experiments.concatenated import ConcatenatedUNet
from minicnet.unet import UNet


@pytest.fixture
def inputs():
    def make(channels=1, condition_channels=1):
        return (torch.randn(3, channels, 12, 12), torch.tensor([0, 7, 900]), torch.tensor([1, 9, 10]),
                torch.rand(3, condition_channels, 12, 12))

    return make


@pytest.mark.parametrize("channels, condition_channels, patch", [(1, 1, 2), (3, 1, 2), (1, 3, 1), (1, 1, 4)])
def test_fine_tuning_starts_from_the_base_for_any_condition(randomised, inputs, channels, condition_channels, patch):
    unet = randomised(UNet(in_channels=channels, channels=8, multipliers=(1,), patch=patch))
    x_t, t, label, condition = inputs(channels, condition_channels)
    net = ConcatenatedUNet(unet, condition_channels)
    expected = unet(x_t, t, label).detach()
    largest = expected.abs().max().item()
    torch.testing.assert_close(net(x_t, t, label, condition), expected, rtol=1e-4, atol=1e-5 * largest)
    before = net.unet.encoder.conv_in.weight.detach().clone()
    net(x_t, t, label, condition).square().sum().backward()
    gradient = net.unet.encoder.conv_in.weight.grad
    assert before.shape == gradient.shape == (8, (channels + condition_channels) * patch**2, 3, 3)
    assert (before[:, channels * patch**2 :] == 0).all() and (gradient[:, channels * patch**2 :] != 0).any()


def test_fine_tuning_trains_everything_and_leaves_the_base_alone(randomised, inputs):
    unet = randomised(UNet(channels=16, multipliers=(1,))).requires_grad_(False)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    net = ConcatenatedUNet(unet)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    start = [parameter.detach().clone() for parameter in net.parameters()]
    net(*inputs()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(start, net.parameters()) if a.ndim > 1)
    assert all(torch.equal(before[name], weight) for name, weight in unet.state_dict().items())
    assert unet.encoder.in_channels == 1 and not any(parameter.requires_grad for parameter in unet.parameters())


def test_the_condition_is_read_and_the_share_of_x_t_is_one_of_x_t_alone(randomised, inputs):
    net = ConcatenatedUNet(randomised(UNet(channels=8, multipliers=(1,))))
    x_t, t, label, condition = inputs()
    torch.nn.init.normal_(net.unet.encoder.conv_in.weight)
    assert not torch.allclose(net(x_t, t, label, condition), net(x_t, t, label, 1 - condition))
    torch.nn.init.zeros_(net.unet.decoder.conv_out.weight)
    torch.nn.init.zeros_(net.unet.decoder.conv_out.bias)
    share = net.unet.share(net.unet.encoder.embed(t, label))[:, :, None, None]
    assert torch.equal(net(x_t, t, label, condition), share * x_t)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(lab_module, "QUICK", dict(seeds=[0, 1], steps=1, batch_size=2, looks=1, images=4, reference=70,
                                                  classifier_steps=3))
    monkeypatch.setattr(lab_module, "load_dataset", lambda name, split: draw_digits(70, seed=len(split)))


def test_it_trains_on_the_first_images_of_a_seeded_order_and_writes_what_it_measured(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(data_size, "SIZES", {"1000": 10, "all": None})
    trained, seen = lab_module.Lab.trained, {}

    def spy(lab, name, seed, make, eps_model, images, labels, **options):
        seen.setdefault((name, seed), (images, labels))
        return trained(lab, name, seed, make, eps_model, images, labels, **options)

    monkeypatch.setattr(lab_module.Lab, "trained", spy)
    result = lab_module.experiment("data_size", tmp_path, True, torch.device("cpu"))
    starts = ["base", "control 1000", "finetuned 1000", "control all", "finetuned all"]
    assert list(result["rows"]) == [f"{start}-{seed}" for seed in (0, 1) for start in starts]
    for key, row in result["rows"].items():
        names = {"edge_f1", "label_accuracy", "frechet"} | (set() if "base" in key else {"loss", "loss_shown"})
        assert set(row) == names | {"seconds"} and all(map(math.isfinite, row.values()))
    assert json.loads((tmp_path / "data_size" / "result.json").read_text())["verdict"] in (
        "reproduced", "mixed", "not reproduced")
    assert (tmp_path / "data_size" / "figure.png").stat().st_size > 10_000

    few, many = seen["control-on-1000", 0], seen["control-on-all", 0]
    assert len(few[0]) == 10 and len(many[0]) == 70
    assert all(torch.equal(a, b[:10]) for a, b in zip(few, many))  # the same order, so more images include fewer
    assert all(torch.equal(a, b) for a, b in zip(few, seen["finetuned-on-1000", 0]))
    assert not torch.equal(few[0], seen["control-on-1000", 1][0])
    images, labels = draw_digits(70, seed=len("train"))
    assert torch.equal(many[0].flatten(1).sum(1).sort().values, images.flatten(1).sum(1).sort().values)
    assert torch.equal(few[1], torch.stack([labels[(images == x).flatten(1).all(1)][0] for x in few[0]]))


def rows_of(floor, few, all_, read=0.95):
    rows = {}
    for seed, noise in enumerate((-0.001, 0.0, 0.001)):
        rows[f"base-{seed}"] = {"edge_f1": floor + noise}
        for method in data_size.METHODS:
            for size in data_size.SIZES:
                value = all_ + noise if size in ("all", "10000") else few - noise
                rows[f"{method} {size}-{seed}"] = {"edge_f1": value, "label_accuracy": 0.95 if size == "all" else read}
    return rows


@pytest.mark.parametrize("numbers, word", [
    ((0.76, 0.95, 0.98), "reproduced"),
    ((0.76, 0.979, 0.98), "mixed"),  # all images are not clearly better
    ((0.76, 0.99, 0.98), "mixed"),  # nor when they are worse
    ((0.76, 0.90, 0.98), "not reproduced"),
    ((0.76, 0.76, 0.98), "not reproduced"),
    ((0.76, 0.95, 0.98, 0.8), "not reproduced"),  # edges are followed, but digits are not read
    ((0.76, 0.77, 0.78), "not reproduced"),  # nothing was learned at all
])
def test_the_verdict_comes_from_the_rows(numbers, word):
    found, why = data_size.verdict(rows_of(*numbers))
    assert found == word
    assert f"{numbers[2]:.3f} ± 0.001" in why and f"base alone {numbers[0]:.3f}" in why and len(why.split()) <= 60
    assert ("tell nothing" in why) == (numbers[2] < 0.8)
