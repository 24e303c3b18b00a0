"""`generate` against the sampler of oracles.py, with guidance and the sum of controls written out.

Everything is in float64, because the first step divides by a very small sqrt(alpha_bar).
"""

import oracles
import pytest
import torch

from minicnet.controlnet import Conditioning
from minicnet.sampling import generate, seeded_noise
from minicnet.words import tokenize


@pytest.fixture(autouse=True)
def float64(unet, nets):
    torch.nn.ModuleList([unet, *nets]).double()


def inputs(B=5, size=8):
    """Prompts, noise and two conditions, other ones for each image."""
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(B, 1, size, size, generator=generator).double()
    first, second = (torch.rand(2, B, 1, size, size, generator=generator) < 0.3).double()
    prompt = tokenize(B // 5 * ["a red seven on navy paper", "seven", "a thick two", "", "a digit"])
    return prompt, x_T, first, second


def expected_images(unet, prompt, x_T, controls=(), w=1, s=1):
    """Return what 4 steps of DDIM draw. w: guidance; s: guidance on the controls."""

    def eps_model(x_t, t):
        eps_cond, eps_uncond = (
            s * unet(x_t, t, tokens, control=sum(
                scale * net(x_t, t, tokens, condition)
                for net, condition, scale in controls) or None)
            + (1 - s) * unet(x_t, t, tokens)
            for tokens in (prompt, 0 * prompt))
        return w * eps_cond + (1 - w) * eps_uncond

    return oracles.ddim(eps_model, unet.schedule.alpha_bar, x_T, [999, 666, 333, 0])


@pytest.mark.parametrize("w, s", [(0, 1), (1, 1), (3, 1), (1, 2.5), (3, 0.5)])
@pytest.mark.parametrize("scales", [(), (0.7,), (0.7, -1.5)])
def test_images_are_ddim_s_under_the_sum_of_all_controls_in_both_branches_of_guidance(
        unet, nets, scales, w, s):
    prompt, x_T, *conditions = inputs()
    controls = list(zip(nets, conditions, scales))
    guidance = {"guidance": w} if w != 1 else {}
    guidance |= {"control_guidance": s} if s != 1 else {}
    found = generate(unet, unet.schedule, prompt, x_T, controls, steps=4, **guidance)
    expected = expected_images(unet, prompt, x_T, controls, w, s)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    without = expected_images(unet, prompt, x_T, controls[:-1], w + 1, s)  # each of them counts
    assert (without - expected).abs().mean() > 1e-4 and not found.requires_grad


def test_many_images_are_drawn_in_chunks_and_each_as_if_alone(unet, nets, capsys):
    prompt, x_T, edges, _ = inputs(B=70, size=4)
    seen, encoded = [], []
    nets[0].condition_encoder.register_forward_hook(lambda *args: encoded.append(len(args[2])))

    def draw(part=slice(None), condition=edges, **options):
        return generate(unet, unet.schedule, prompt[part], x_T[part], [(nets[0], condition, 1)],
                        guidance=2, steps=2, **options)

    together = draw(hook=lambda *step: seen.append(step))
    assert encoded == [64, 64, 6, 6]  # once for each branch of guidance
    assert [(t, len(x_t)) for t, x_t, _ in seen] == [(999, 64), (0, 64), (999, 6), (0, 6)]
    assert torch.equal(seen[0][1], x_T[:64])
    assert torch.equal(torch.cat([seen[1][2], seen[3][2]]), together)
    for part in (slice(0, 1), slice(63, 65), slice(69, 70)):
        torch.testing.assert_close(together[part], draw(part, edges[part]), rtol=0, atol=1e-3)
    assert torch.equal(draw(condition=edges[:1]), draw(condition=edges[:1].repeat(70, 1, 1, 1)))
    assert capsys.readouterr().err == ""
    draw(progress=True)
    assert "drawing" in capsys.readouterr().err


@pytest.mark.parametrize("change, message", [
    (dict(condition=torch.zeros(3, 1, 8, 8)), "batch 1 or 5, as the noise has, not 3"),
    (dict(scale=1e300), "not finite"),
    *((dict(start=start, end=end), "0 <= start < end <= 1") for start, end in [
        (0.5, 0.5), (0.6, 0.4), (-0.1, 1), (0, 1.1), (float("nan"), 1)])])
def test_controls_that_make_no_sense_are_refused(unet, nets, change, message):
    prompt, x_T, edges, _ = inputs()
    control = Conditioning(nets[0], edges)._replace(**change)
    with pytest.raises(ValueError, match=message):
        generate(unet, unet.schedule, prompt, x_T, [control], steps=2)


def test_noise_depends_on_its_seed_alone():
    first, again, other = (seeded_noise((50, 1, 8, 8), seed) for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert abs(first.mean()) < 0.05 and abs(first.std() - 1) < 0.05
