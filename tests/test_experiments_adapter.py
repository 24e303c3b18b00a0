"""The rivals that run once per image: they start from the base, run once, and learn; and the rule of their verdict."""

import pytest
import torch

from minicnet.controlnet import ControlNet, controlled, freeze
from minicnet.diffusion import NoiseSchedule
from minicnet.experiments import adapter
from minicnet.experiments.adapter import Adapter, CopyOnce
from minicnet.sampling import generate
from minicnet.unet import UNet
from minicnet.words import tokenize

ONCE = [Adapter, CopyOnce]


@pytest.fixture
def base(randomised):
    return freeze(randomised(UNet(channels=8)))


def inputs():
    return torch.randn(4, 1, 12, 12), torch.tensor([0, 7, 900, 999]), tokenize(["a three", "", "a five", ""])


@pytest.mark.parametrize("make", ONCE)
def test_before_training_the_base_is_unchanged_bit_for_bit(base, make):
    x = inputs()
    for condition, scale in ((torch.rand(4, 1, 12, 12), 1), (torch.rand(2, 1, 12, 12), 2.0)):  # and under guidance
        assert torch.equal(controlled(base, [(make(base), condition, scale)])(*x), base(*x))


@pytest.mark.parametrize("make", ONCE)
def test_it_runs_once_for_all_steps_and_both_branches_of_guidance(base, randomised, make):
    net, calls = freeze(randomised(make(base))), []
    net.zero_middle.register_forward_hook(lambda *_: calls.append("middle"))
    net.stages[0].register_forward_hook(lambda *_: calls.append("stage")) if make is Adapter else \
        net.encoder.stages[0].register_forward_hook(lambda *_: calls.append("stage"))
    noise, edges = torch.randn(3, 1, 12, 12), torch.rand(3, 1, 12, 12).round()
    prompt, schedule = tokenize(["a three"] * 3), NoiseSchedule.cosine(1000)
    images = generate(base, schedule, prompt, noise, [(net, edges, 1)], guidance=2.0, steps=5)
    assert sorted(calls) == ["middle", "stage"]
    assert not torch.allclose(images, generate(base, schedule, prompt, noise, guidance=2.0, steps=5))


@pytest.mark.parametrize("make", ONCE)
def test_its_residuals_fit_those_of_a_control_net_and_add_to_them(base, randomised, make):
    (x_t, t, prompt), condition = inputs(), torch.rand(4, 1, 12, 12)
    net, control_net = (freeze(randomised(which(base))) for which in (make, ControlNet))
    ours, theirs = net.encode(condition), control_net(x_t, t, prompt, condition)
    total = controlled(base, [(net, condition, 0.5), (control_net, condition, 1)])(x_t, t, prompt)
    torch.testing.assert_close(total, base(x_t, t, prompt, control=0.5 * ours + theirs))


def test_an_adapter_learns_with_all_of_its_weights(base, randomised):
    net = randomised(Adapter(base))
    controlled(base, [(net, torch.rand(4, 1, 12, 12), 1)])(*inputs()).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def rows_of(f1, arithmetic):
    """Rows in which the adapter's edge-F1 and arithmetic are these, and ControlNet's 0.98 and 1.4."""
    rows = {}
    for seed in (0, 1):
        for name, value in {"base": 0.7, "ControlNet": 0.98, "adapter": f1, "copy once": 0.9}.items():
            values = [value + 0.01 * seed, value - 0.01]
            rows[f"{name}-{seed}"] = {measure: value for measure in ("edge_f1", "label_accuracy")} | \
                {f"{measure}_blocks": values for measure in ("edge_f1", "label_accuracy")}
        rows[f"cost-{seed}"] = {f"{name}, {unit}": ratio for unit in ("arithmetic", "time") for name, ratio in
                                {"base": 1.0, "ControlNet": 1.4, "adapter": arithmetic, "copy once": 1.05}.items()}
    return rows


@pytest.mark.parametrize("f1, arithmetic, word", [
    (0.98, 1.02, "reproduced"), (0.975, 1.02, "reproduced"), (0.99, 1.02, "reproduced"),
    (0.96, 1.02, "mixed"), (0.98, 1.2, "mixed"), (0.96, 1.2, "not reproduced")])
def test_an_adapter_must_be_cheap_and_follow_as_well(f1, arithmetic, word):
    found, why = adapter.verdict(rows_of(f1, arithmetic))
    assert found == word and f"{arithmetic:.2f} times the base's arithmetic" in why and f"{f1 - 0.98:+.3f}" in why
