"""`generate` against a sampler that is written out by hand: DDIM on a base, under controls and guidance."""

import pytest
import torch

from minicnet import sampling
from minicnet.controlnet import ControlNet
from minicnet.diffusion import NoiseSchedule
from minicnet.sampling import generate, seeded_noise
from minicnet.words import tokenize

SCHEDULE = NoiseSchedule.linear(100)  # at whose end there is an image left: else random networks draw but -1 and 1


def inputs(B=5, size=8):
    """Prompts, noise and two conditions, other ones for each image."""
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(B, 1, size, size, generator=generator)
    first, second = (torch.rand(2, B, 1, size, size, generator=generator) < 0.3).float()
    prompt = tokenize(["a red seven on navy paper", "seven", "a thick two", "", "a digit leaning left"])
    return prompt[torch.arange(B) % 5], x_T, first, second


@torch.no_grad()
def by_hand(unet, prompt, x_T, controls=(), w=1, steps=4, acts=None):
    """DDIM (Song et al., Eq. 12 with sigma = 0), guidance and the sum of residuals, each where it is used.

    acts: for each control, the steps in which it does; all unless given.
    """
    def eps_of(x_t, t, prompt):
        parts = [(net(x_t, t, prompt, condition), scale) for k, (net, condition, scale) in enumerate(controls)
                 if not acts or i in acts[k]]
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


@pytest.mark.parametrize("spans, acts", [
    ([(0, 1), (0, 1)], [range(4), range(4)]), ([(0.5, 1), (0, 0.5)], [[2, 3], [0, 1]]),
    ([(0.25, 0.75), (0.3, 0.74)], [[1, 2], []]), ([(0.24, 0.76), (0, 0.2)], [[1, 2], []])])
def test_a_control_acts_in_the_steps_that_lie_in_its_span(unet, nets, spans, acts):
    prompt, x_T, *conditions = inputs()
    controls = list(zip(nets, conditions, (0.7, -1.5)))
    found = generate(unet, SCHEDULE, prompt, x_T, controls, spans=spans, guidance=2, steps=4)
    torch.testing.assert_close(found, by_hand(unet, prompt, x_T, controls, 2, acts=acts), rtol=0, atol=1e-4)


def test_outside_of_every_span_a_step_is_the_base_bit_for_bit_and_conditions_are_still_encoded_once(unet, nets):
    prompt, x_T, a, b = inputs()
    controls, encoded, batches = [(nets[0], a, 1), (nets[1], b, 1)], record_batches(nets[0].condition_encoder), []
    alone, late = [], []
    generate(unet, SCHEDULE, prompt, x_T, steps=6, hook=lambda *step: alone.append(step))
    nets[0].register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    generate(unet, SCHEDULE, prompt, x_T, controls, spans=[(0.5, 1), (0.6, 1)], steps=6,
             hook=lambda *step: late.append(step))
    same = [torch.equal(x_0, other) for (_, _, x_0), (_, _, other) in zip(alone, late)]
    assert same == [True] * 3 + [False] * 3 and batches == [5] * 3 and len(encoded) <= 2  # alone, then with the other


@pytest.mark.parametrize("spans", [[], [(0, 1)] * 2, [(0.5, 0.5)], [(0.6, 0.4)], [(-0.1, 1)], [(0, 1.1)],
                                   [(float("nan"), 1)]])
def test_spans_that_make_no_sense_are_refused(unet, nets, spans):
    prompt, x_T, edges, _ = inputs()
    with pytest.raises(ValueError, match="spans must hold 0 <= start < end <= 1 for each of 1 controls"):
        generate(unet, SCHEDULE, prompt, x_T, [(nets[0], edges, 1)], spans=spans)


def test_a_hook_sees_every_step_of_every_part_and_ends_the_drawing_by_raising(unet, monkeypatch):
    monkeypatch.setattr(sampling, "CPU_CHUNK", 3)
    prompt, x_T, *_ = inputs()
    seen = []
    images = generate(unet, SCHEDULE, prompt, x_T, steps=3, hook=lambda *step: seen.append(step))
    assert [(t, len(x_t)) for t, x_t, _ in seen] == [(99, 3), (50, 3), (0, 3), (99, 2), (50, 2), (0, 2)]
    assert torch.equal(seen[0][1], x_T[:3]) and torch.equal(torch.cat([seen[2][2], seen[5][2]]), images)
    sizes = record_batches(unet)

    def stop(t, x_t, x_0):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        generate(unet, SCHEDULE, prompt, x_T, steps=3, hook=stop)
    assert len(sizes) == 1


def test_noise_depends_on_its_seed_alone():
    first = seeded_noise((50, 1, 8, 8), 7)
    torch.manual_seed(99)
    assert torch.equal(seeded_noise((50, 1, 8, 8), 7), first) and not torch.equal(seeded_noise((50, 1, 8, 8), 8), first)
    assert first.mean().item() == pytest.approx(0, abs=0.05) and first.std().item() == pytest.approx(1, abs=0.05)
