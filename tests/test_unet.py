"""The UNet's blocks against loops, and the whole against what must not change it."""

import ast
import sys
from pathlib import Path

import oracles
import pytest
import torch
import torch.nn.functional as F

from minicnet.unet import (
    CrossAttention,
    Downsample,
    ResBlock,
    SelfAttention,
    UNet,
    Upsample,
    timestep_embedding,
)
from minicnet.words import TextEncoder, tokenize

TINY = dict(channels=16, multipliers=(1, 2), patch=2)
SENTENCES = ["a red seven on navy paper", "a two", "", "a thin digit", "horse"]


@pytest.fixture
def unet(randomised):
    return randomised(UNet(**TINY))


def inputs(B=3, C=1, H=8, W=8):
    """x_t, t, prompt of B images."""
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(B, C, H, W, generator=generator)
    return x_t, torch.randint(1000, (B,), generator=generator), tokenize(SENTENCES[:B])


def record(net, kind):
    """Return a list to which every block of a kind adds (block, input, output) when it runs."""
    seen = []
    for block in net.modules():
        if isinstance(block, kind):
            block.register_forward_hook(lambda *args: seen.append((args[0], args[1][0], args[2])))
    return seen


def norm_silu(x, norm):
    return F.silu(F.group_norm(x, 8, norm.weight, norm.bias))


def conv(x, layer, stride=1):
    return oracles.convolution(x, layer.weight, layer.bias, stride)


# Blocks


def test_timestep_embedding_is_sines_then_cosines_of_falling_frequencies():
    t = torch.tensor([0, 1, 2, 17, 500, 999])
    angles = t.double()[:, None] / 10_000 ** (torch.arange(0, 12, 2) / 12).double()
    expected = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    torch.testing.assert_close(timestep_embedding(t, 12), expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize("in_channels, out_channels", [(16, 16), (16, 8)])
def test_a_res_block_is_two_convolutions_the_embedding_and_a_shortcut(
        randomised, in_channels, out_channels):
    block = randomised(ResBlock(in_channels, out_channels, 12))
    x, emb = torch.randn(2, in_channels, 5, 4), torch.randn(2, 12)
    h = conv(norm_silu(x, block.norm1), block.conv1)
    h = h + (emb @ block.emb.weight.T + block.emb.bias).view(2, out_channels, 1, 1)
    h = conv(norm_silu(h, block.norm2), block.conv2)
    shortcut = x if in_channels == out_channels else conv(x, block.shortcut)
    torch.testing.assert_close(block(x, emb), shortcut + h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_attention_blocks_attend_by_loops_to_all_locations_or_to_all_words_but_padding(
        randomised, kind, heads):
    crosses = kind is CrossAttention
    block = CrossAttention(16, 24, heads) if crosses else SelfAttention(16, heads)
    randomised(block, std=0.5)
    x, words = torch.randn(3, 16, 2, 3), TextEncoder(24)(tokenize(SENTENCES[:3]))
    locations = F.group_norm(x, 8, block.norm.weight, block.norm.bias).flatten(2).mT
    q, k, v = ((block.q(locations), block.k(words.vectors), block.v(words.vectors)) if crosses
               else block.qkv(locations).split(16, dim=-1))
    weights, h = oracles.attention(q, k, v, heads, words.mask if crosses else None)
    expected = x + F.linear(h, block.proj.weight, block.proj.bias).mT.view_as(x)
    torch.testing.assert_close(block(x, None, words), expected, rtol=1e-4, atol=1e-5)
    if crosses:
        torch.testing.assert_close(block.weights(x, words), weights, rtol=1e-4, atol=1e-5)


def test_downsampling_keeps_every_second_pixel_of_a_convolution(randomised):
    block, x = randomised(Downsample(8)), torch.randn(2, 8, 6, 4)
    torch.testing.assert_close(block(x), conv(x, block.conv, stride=2))


def test_upsampling_mixes_the_channels_and_doubles_every_pixel(randomised):
    block, x = randomised(Upsample(16, 8)), torch.randn(2, 16, 3, 4)
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(block(x), conv(doubled, block.conv), rtol=1e-4, atol=1e-5)


# The whole


def test_the_last_layer_gives_v_which_is_0_at_first_and_each_block_its_shortcut(randomised):
    """eps = sqrt(1 - alpha_bar) x_t + sqrt(alpha_bar) v."""
    unet, (x_t, t, prompt) = UNet(**TINY), inputs()
    seen = record(unet, ResBlock | SelfAttention | CrossAttention)
    found = record(unet, type(unet.decoder))
    alpha_bar = torch.from_numpy(oracles.cosine_alpha_bar(1000))[t].float().view(3, 1, 1, 1)
    torch.testing.assert_close(unet(x_t, t, prompt), (1 - alpha_bar).sqrt() * x_t)
    for block, x, out in seen:
        assert torch.equal(out, block.shortcut(x) if isinstance(block, ResBlock) else x)
    assert len(seen) > 10 and not found[0][2].any()
    eps = randomised(unet)(x_t, t, prompt)
    expected = (1 - alpha_bar).sqrt() * x_t + alpha_bar.sqrt() * found[1][2]
    torch.testing.assert_close(eps, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("C, multipliers, blocks, patch, skips", [
    (1, (1,), 1, 1, [(16, 16), (16, 16)]),
    (3, (1,), 1, 4, [(16, 4), (16, 4)]),
    (1, (1, 2), 1, 2, [(16, 8), (16, 8), (16, 4), (32, 4)]),
    (3, (1, 2), 2, 2, [(16, 8), (16, 8), (16, 8), (16, 4), (32, 4), (32, 4)]),
    (1, (2, 1, 3), 1, 2, [(16, 8), (32, 8), (32, 4), (16, 4), (16, 2), (48, 2)]),
])
def test_the_first_convolution_and_every_stage_leave_a_skip_and_the_decoder_takes_the_last_first(
        randomised, C, multipliers, blocks, patch, skips):
    unet = randomised(UNet(C, channels=16, multipliers=multipliers, blocks=blocks, patch=patch))
    x_t, t, prompt = inputs(2, C, 16, 32)
    features, middle, emb, words = unet.encoder(x_t, t, prompt)
    folded = conv(oracles.space_to_depth(x_t, patch), unet.encoder.conv_in)
    torch.testing.assert_close(features[0], folded, rtol=1e-4, atol=1e-4)
    assert [feature.shape for feature in features] == [(2, C, H, 2 * H) for C, H in skips]
    stages = record(unet.decoder, type(unet.decoder.stages[0]))
    v = unet.decoder(features, middle, emb, words)
    assert torch.equal(stages[0][1], torch.cat([middle, features[-1]], dim=1))
    for (*_, above), (_, x, _), skip in zip(stages[:-1], stages[1:], features[-2::-1], strict=True):
        assert torch.equal(x, torch.cat([above, skip], dim=1))
    h = conv(norm_silu(stages[-1][2], unet.decoder.norm_out), unet.decoder.conv_out)
    torch.testing.assert_close(oracles.space_to_depth(v, patch), h, rtol=1e-4, atol=1e-4)
    assert v.shape == x_t.shape and v.std(dim=(1, 2, 3)).min() > 0
    for wrong in (features[1:], [features[0], *features]):
        with pytest.raises(ValueError):
            unet.decoder(wrong, middle, emb, words)


def test_attention_stands_at_the_encoder_s_coarsest_level_and_in_the_middle():
    unet = UNet(channels=8, multipliers=(1, 2, 3), blocks=2, patch=1)
    seen = record(unet, SelfAttention | CrossAttention)
    unet(*inputs(2, 1, 16, 16))
    kinds = [(type(block), *out.shape[1:]) for block, _, out in seen]
    assert kinds == 3 * [(SelfAttention, 24, 4, 4), (CrossAttention, 24, 4, 4)]


@pytest.mark.parametrize("summary, cross", [(True, False), (False, True), (False, False)])
def test_the_summary_and_cross_attention_both_carry_the_prompt_and_nothing_else_does(
        unet, summary, cross):
    x_t, t, prompt = inputs()
    with torch.no_grad():  # cuts the paths that are not to carry it
        for block in unet.modules():
            if isinstance(block, CrossAttention):
                block.proj.weight.mul_(cross)
        unet.encoder.summary.weight.mul_(summary)
    difference = (unet(x_t, t, prompt) - unet(x_t, t, prompt.roll(1, 0))).abs().mean()
    assert difference > 1e-3 if summary or cross else difference == 0


def test_every_parameter_is_used(unet):
    x_t, t, prompt = inputs()
    unet(x_t, t, prompt + (prompt == 0)).square().sum().backward()  # prompts without padding
    assert not [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert unet.encoder.text.positions.weight.grad.any(1).all()


def test_training_mode_changes_nothing(unet):
    """There is no dropout and no batch norm, so a locked base stays itself."""
    assert torch.equal(unet.train()(*inputs()), unet.eval()(*inputs()))


def test_settings_and_weights_make_the_same_unet_again(randomised):
    unet = randomised(UNet(3, channels=8, multipliers=(1, 3), blocks=2, patch=1))
    again = UNet(**unet.settings)
    again.load_state_dict(unet.state_dict())
    assert torch.equal(unet(*inputs(2, 3)), again(*inputs(2, 3)))


X, T, PROMPT = torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]), tokenize(["a seven", ""])


@pytest.mark.parametrize("x_t, t, prompt, message", [
    (torch.zeros(2, 1, 8, 10), T, PROMPT, r"\(B, 1, H, W\), with H and W multiples of 4"),
    (torch.zeros(2, 1, 6, 8), T, PROMPT, "x_t must be"),
    (torch.zeros(2, 3, 8, 8), T, PROMPT, "x_t must be"),
    (torch.zeros(1, 8, 8), T[:1], PROMPT[:1], "x_t must be"),
    (X, T[:1], PROMPT, "one timestep for each of the 2 images"),
    (X, T[:, None], PROMPT, "one timestep for each of the 2 images"),
    (X, T, PROMPT[0], "prompt must hold a row"),
    (X, T, PROMPT[:1], "prompt must hold a row"),
    (X, T, PROMPT[:, :0], "prompt must hold a row"),
    (X, T, PROMPT.repeat(1, 2), "prompt must hold a row"),
    (X, T, PROMPT.int(), "prompt must hold a row"),
])
def test_inputs_that_do_not_fit_are_refused(unet, x_t, t, prompt, message):
    with pytest.raises(ValueError, match=message):
        unet(x_t, t, prompt)


def test_the_core_is_short_and_each_file_imports_only_torch_and_what_was_read_before():
    statements, known = 0, sys.stdlib_module_names | {"torch", "minicnet.errors"}
    for name in ["diffusion", "words", "unet", "controlnet"]:  # read in one evening
        source = (Path(__file__).parents[1] / "minicnet" / f"{name}.py").read_text()
        for node in ast.walk(ast.parse(source)):
            statements += isinstance(node, ast.stmt)
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", node.names[0].name)
                assert module in known or module.split(".")[0] in known, (name, module)
        known |= {f"minicnet.{name}"}
    assert statements < 500
