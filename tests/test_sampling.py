"""`generate` against a sampler that is written out by hand: DDIM on a base, under controls and guidance."""

import pytest
import torch

from minicnet import sampling
from minicnet.controlnet import ControlNet, freeze
from minicnet.diffusion import NoiseSchedule
from minicnet.sampling import generate, seeded_noise
from minicnet.unet import UNet
from minicnet.words import tokenize

SCHEDULE = NoiseSchedule.linear(100)  # at whose end there is an image left: else random networks draw but -1 and 1


@pytest.fixture
def unet(randomised):
    return freeze(randomised(UNet(channels=8, multipliers=(1,))))


@pytest.fixture
def nets(randomised, unet):
    return [freeze(randomised(ControlNet(unet), seed=seed)) for seed in (1, 2)]


def inputs(B=5, size=8):
    """Prompts, noise and two conditions, other ones for each image."""
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(B, 1, size, size, generator=generator)
    first, second = (torch.rand(2, B, 1, size, size, generator=generator) < 0.3).float()
    prompt = tokenize(["a red seven on navy paper", "seven", "a thick two", "", "a digit leaning left"])
    return prompt[torch.arange(B) % 5], x_T, first, second


@torch.no_grad()
def by_hand(unet, prompt, x_T, controls=(), w=1, steps=4):
    """DDIM (Song et al., Eq. 12 with sigma = 0), guidance and the sum of residuals, each where it is used."""
    def eps_of(x_t, t, prompt):
        parts = [(net(x_t, t, prompt, condition), scale) for net, condition, scale in controls]
        total = sum(scale * control for control, scale in parts) if parts else None
        return unet(x_t, t, prompt, control=total)

    x_t, times = x_T, torch.linspace(99, 0, steps).round().long().tolist()
    for i, time in enumerate(times):
        t = torch.full((len(x_T),), time)
        eps_cond, eps_uncond = eps_of(x_t, t, prompt), eps_of(x_t, t, torch.zeros_like(prompt))
        eps = eps_uncond + w * (eps_cond - eps_uncond)
        now = SCHEDULE.alpha_bar[time]
        x_0 = ((x_t - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-1, 1)
        if i == steps - 1:
            return x_0
        then = SCHEDULE.alpha_bar[times[i + 1]]
        x_t = then.sqrt() * x_0 + (1 - then).sqrt() * (x_t - now.sqrt() * x_0) / (1 - now).sqrt()


@pytest.mark.parametrize("w", [0, 1, 3])
@pytest.mark.parametrize("scales", [(), (0.7,), (0.7, -1.5)])
def test_it_is_ddim_under_the_sum_of_all_controls_in_both_branches_of_guidance(unet, nets, scales, w):
    prompt, x_T, *conditions = inputs()
    controls = list(zip(nets, conditions, scales))
    found = generate(unet, SCHEDULE, prompt, x_T, controls, guidance=w, steps=4)
    expected = by_hand(unet, prompt, x_T, controls, w)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.abs().max() <= 1 and expected.std() > 0.1 and not found.requires_grad
    for other in (by_hand(unet, prompt, x_T, controls, w + 1), by_hand(unet, prompt, x_T, controls[:-1], w)):
        assert not controls or (other - expected).abs().mean() > 1e-3  # each of them counts


@pytest.mark.parametrize("w", [1, 2.0])
def test_scale_0_and_zero_convolutions_are_the_base_bit_for_bit(unet, nets, w):
    prompt, x_T, a, b = inputs()
    alone = generate(unet, SCHEDULE, prompt, x_T, guidance=w, steps=4)
    for controls in ([(nets[0], a, 0), (nets[1], b, 0.0)], [(ControlNet(unet), a, 1)]):
        assert torch.equal(generate(unet, SCHEDULE, prompt, x_T, controls, guidance=w, steps=4), alone)


def record_batches(net):
    sizes = []
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def test_many_images_are_drawn_in_parts_and_each_as_if_alone(unet, nets, monkeypatch):
    monkeypatch.setattr(sampling, "CPU_CHUNK", 4)
    prompt, x_T, edges, _ = inputs(B=10)
    sizes = record_batches(unet)
    together = generate(unet, SCHEDULE, prompt, x_T, [(nets[0], edges, 1)], guidance=2, steps=2)
    assert sizes == [8, 8, 8, 8, 4, 4]
    for i in (slice(0, 1), slice(3, 6), slice(9, 10)):
        alone = generate(unet, SCHEDULE, prompt[i], x_T[i], [(nets[0], edges[i], 1)], guidance=2, steps=2)
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("w, batch", [(1, 5), (0, 5), (2, 10)])
def test_only_guidance_needs_a_double_batch_and_conditions_are_encoded_once(unet, nets, w, batch):
    prompt, x_T, a, b = inputs()
    sizes, encoded = record_batches(unet), [record_batches(net.condition_encoder) for net in nets]
    generate(unet, SCHEDULE, prompt, x_T, [(nets[0], a, 1), (nets[1], b, 1)], guidance=w, steps=3)
    assert sizes == [batch] * 3 and encoded == [[5], [5]]


def test_noise_depends_on_its_seed_alone():
    first = seeded_noise((50, 1, 8, 8), 7)
    torch.manual_seed(99)
    assert torch.equal(seeded_noise((50, 1, 8, 8), 7), first) and not torch.equal(seeded_noise((50, 1, 8, 8), 8), first)
    assert first.mean().item() == pytest.approx(0, abs=0.05) and first.std().item() == pytest.approx(1, abs=0.05)
