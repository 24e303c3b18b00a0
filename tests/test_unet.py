"""The UNet's parts against PyTorch's own layers and functions, and the whole against what must not change it."""

import ast
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minicnet
from minicnet.unet import CrossAttention, Downsample, ResBlock, SelfAttention, UNet, Upsample, timestep_embedding
from minicnet.words import LENGTH, VOCABULARY, TextEncoder, tokenize

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


# Timestep embedding


def test_timestep_embedding_is_sines_and_cosines():
    t, dim = torch.tensor([0, 1, 2, 17, 500, 999]), 12
    embedding = timestep_embedding(t, dim)
    assert embedding.shape == (6, dim)
    for b, i in itertools.product(range(6), range(dim // 2)):
        angle = t[b].item() / 10_000 ** (2 * i / dim)
        assert embedding[b, i].item() == pytest.approx(math.sin(angle), abs=3e-4)
        assert embedding[b, dim // 2 + i].item() == pytest.approx(math.cos(angle), abs=3e-4)


# Blocks


def group_norm(x, norm):
    return F.group_norm(x, 8, norm.weight, norm.bias)


def conv(x, layer):
    """A convolution of stride 1 that keeps the size."""
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


@pytest.mark.parametrize("in_channels, out_channels", [(16, 16), (16, 8)])
def test_res_block_by_hand(randomised, in_channels, out_channels):
    block = randomised(ResBlock(in_channels, out_channels, 12))
    x, emb = torch.randn(2, in_channels, 5, 4), torch.randn(2, 12)
    h = conv(F.silu(group_norm(x, block.norm1)), block.conv1)
    h = h + (emb @ block.emb.weight.T + block.emb.bias).view(2, out_channels, 1, 1)
    h = conv(F.silu(group_norm(h, block.norm2)), block.conv2)
    shortcut = x if in_channels == out_channels else conv(x, block.shortcut)
    torch.testing.assert_close(block(x, emb), shortcut + h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 4])
def test_self_attention_is_pytorch_s_multihead_attention(randomised, heads):
    block, oracle = randomised(SelfAttention(16, heads), std=0.5), nn.MultiheadAttention(16, heads, batch_first=True)
    oracle.load_state_dict({"in_proj_weight": block.qkv.weight, "in_proj_bias": block.qkv.bias,
                            "out_proj.weight": block.proj.weight, "out_proj.bias": block.proj.bias})
    x = torch.randn(2, 16, 3, 5)
    places = group_norm(x, block.norm).flatten(2).transpose(1, 2)  # (B, H*W, C)
    out = oracle(places, places, places)[0].transpose(1, 2).view_as(x)
    torch.testing.assert_close(block(x), x + out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
def test_cross_attention_is_pytorch_s_multihead_attention_and_looks_at_no_padding(randomised, heads):
    block = randomised(CrossAttention(16, 24, heads), std=0.5)
    oracle = nn.MultiheadAttention(16, heads, batch_first=True, kdim=24, vdim=24)
    oracle.load_state_dict({"q_proj_weight": block.q.weight, "k_proj_weight": block.k.weight,
                            "v_proj_weight": block.v.weight,
                            "in_proj_bias": torch.cat([block.q.bias, block.k.bias, block.v.bias]),
                            "out_proj.weight": block.proj.weight, "out_proj.bias": block.proj.bias})
    x, words = torch.randn(3, 16, 3, 5), TextEncoder(24)(tokenize(SENTENCES[:3]))
    places = group_norm(x, block.norm).flatten(2).transpose(1, 2)
    out, weights = oracle(places, words.vectors, words.vectors, key_padding_mask=~words.mask,
                          average_attn_weights=False)
    torch.testing.assert_close(block(x, None, words), x + out.transpose(1, 2).view_as(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.weights(x, words), weights, rtol=1e-4, atol=1e-5)
    assert block.weights(x, words).shape == (3, heads, 15, LENGTH)
    for b, count in enumerate([6, 2, 1]):
        assert not block.weights(x, words)[b, ..., count:].any()


def test_downsample_keeps_every_second_pixel_of_a_convolution(randomised):
    block, x = randomised(Downsample(8)), torch.randn(2, 8, 6, 4)
    torch.testing.assert_close(block(x), conv(x, block.conv)[:, :, ::2, ::2])


def test_upsample_mixes_the_channels_and_doubles_every_pixel(randomised):
    block, x = randomised(Upsample(16, 8)), torch.randn(2, 16, 3, 4)
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert block.conv.kernel_size == (1, 1)
    torch.testing.assert_close(block(x), conv(doubled, block.conv), rtol=1e-4, atol=1e-5)


# The whole


def test_a_fresh_unet_guesses_that_there_is_no_noise_and_each_of_its_blocks_passes_on_what_it_is_given():
    unet, seen = UNet(**TINY), []
    for block in unet.modules():
        if isinstance(block, ResBlock | SelfAttention | CrossAttention):
            block.register_forward_hook(lambda block, args, out: seen.append((block, args[0], out)))
    assert torch.equal(unet(*inputs()), torch.zeros(3, 1, 8, 8)) and seen
    for block, x, out in seen:
        assert torch.equal(out, block.shortcut(x) if isinstance(block, ResBlock) else x)


@pytest.mark.parametrize("C, multipliers, blocks, patch, skips", [
    (1, (1,), 1, 1, [(16, 16), (16, 16)]),
    (3, (1,), 1, 4, [(16, 4), (16, 4)]),
    (1, (1, 2), 1, 2, [(16, 8), (16, 8), (16, 4), (32, 4)]),
    (3, (1, 2), 2, 2, [(16, 8), (16, 8), (16, 8), (16, 4), (32, 4), (32, 4)]),
    (1, (2, 1, 3), 1, 2, [(16, 8), (32, 8), (32, 4), (16, 4), (16, 2), (48, 2)]),
])
def test_the_first_convolution_and_every_stage_leave_a_skip_and_eps_is_shaped_like_x_t(
        randomised, C, multipliers, blocks, patch, skips):
    unet = randomised(UNet(C, channels=16, multipliers=multipliers, blocks=blocks, patch=patch))
    x_t, t, prompt = inputs(2, C, 16, 32)
    features, middle, _, _ = unet.encoder(x_t, t, prompt)
    assert [feature.shape for feature in features] == [(2, channels, H, 2 * H) for channels, H in skips]
    assert unet.encoder.skip_channels == [channels for channels, _ in skips]
    assert middle.shape == features[-1].shape and torch.equal(features[0], unet.encoder.first(x_t))
    eps = unet(x_t, t, prompt)
    assert eps.shape == x_t.shape and eps.dtype == torch.float32 and eps.isfinite().all()
    assert eps.std(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("multipliers, blocks", [((1, 2), 1), ((1, 1, 2), 2)])
def test_the_decoder_takes_each_skip_once_the_last_one_first(randomised, multipliers, blocks):
    unet = randomised(UNet(channels=8, multipliers=multipliers, blocks=blocks, patch=1))
    skips, middle, emb, words = unet.encoder(*inputs(2))
    h, left = middle, list(skips)
    for stage in unet.decoder.stages:
        h = stage(torch.cat([h, left.pop()], dim=1), emb, words)
    assert left == []
    eps = conv(F.silu(group_norm(h, unet.decoder.norm_out)), unet.decoder.conv_out)
    torch.testing.assert_close(unet.decoder(skips, middle, emb, words), eps, rtol=1e-3, atol=1e-3)
    for wrong in (skips[1:], [skips[0], *skips]):
        with pytest.raises(ValueError):
            unet.decoder(wrong, middle, emb, words)


def test_attention_stands_at_the_encoder_s_coarsest_level_and_in_the_middle():
    unet, seen = UNet(channels=8, multipliers=(1, 2, 3), blocks=2, patch=1), []
    for block in unet.modules():
        if isinstance(block, SelfAttention | CrossAttention):
            block.register_forward_hook(lambda block, args, out: seen.append((type(block), *out.shape[1:])))
    unet.encoder(*inputs(2, 1, 16, 16))
    assert seen == 3 * [(SelfAttention, 24, 4, 4), (CrossAttention, 24, 4, 4)]
    assert not any(isinstance(block, SelfAttention | CrossAttention) for block in unet.decoder.modules())


@pytest.mark.parametrize("p", [1, 2, 4])
def test_a_patch_of_pixels_becomes_channels_and_pixels_again(randomised, p):
    unet = randomised(UNet(2, channels=8, multipliers=(1,), patch=p))
    x_t, t, prompt = inputs(2, 2)
    folded = torch.stack([x_t[:, c, i::p, j::p] for c in range(2) for i in range(p) for j in range(p)], dim=1)
    torch.testing.assert_close(unet.encoder.first(x_t), conv(folded, unet.encoder.conv_in), rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # with a bias alone, the last convolution paints the same patch everywhere
        unet.decoder.conv_out.weight.zero_()
    patch = unet.decoder.conv_out.bias.view(2, p, p)
    painted = unet.decoder(*unet.encoder(x_t, t, prompt))
    torch.testing.assert_close(painted, patch.repeat(1, 8 // p, 8 // p).expand(2, 2, 8, 8))


def test_images_of_a_batch_do_not_see_each_other(unet):
    x_t, t, prompt = inputs(5)
    together = unet(x_t, t, prompt)
    for b in range(5):
        alone = unet(x_t[b:b + 1], t[b:b + 1], prompt[b:b + 1])
        torch.testing.assert_close(together[b:b + 1], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("summary, cross", [(True, False), (False, True), (False, False)])
def test_both_the_summary_and_cross_attention_carry_the_prompt_and_nothing_else_does(unet, summary, cross):
    x_t, t, prompt = inputs()
    with torch.no_grad():  # cuts off what is not to carry it
        for block in unet.modules():
            if isinstance(block, CrossAttention) and not cross:
                block.proj.weight.zero_()
        if not summary:
            unet.encoder.summary.weight.zero_()
    difference = (unet(x_t, t, prompt) - unet(x_t, t, prompt.roll(1, 0))).abs().mean()
    assert difference > 1e-3 if summary or cross else difference == 0


def test_every_parameter_is_used(unet):
    x_t, t, _ = inputs()
    unet(x_t, t, tokenize([LENGTH * "a ", "two", ""])).square().sum().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert unet.encoder.text.places.weight.grad.any(1).all()


def test_training_mode_changes_nothing(unet):
    """No dropout, no batch norm: a locked base would not be itself any more."""
    assert torch.equal(unet.train()(*inputs()), unet.eval()(*inputs()))
    assert not list(unet.buffers())


def test_settings_and_weights_make_the_same_unet_again(randomised):
    assert UNet().settings == dict(in_channels=1, channels=32, multipliers=[1, 2], blocks=1, patch=2)
    unet = randomised(UNet(3, channels=8, multipliers=(1, 3), blocks=2, patch=1))
    again = UNet(**unet.settings)
    again.load_state_dict(unet.state_dict())
    assert torch.equal(unet(*inputs(2, 3)), again(*inputs(2, 3)))


# What does not fit

X, T, PROMPT = torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]), tokenize(["a seven", ""])


@pytest.mark.parametrize("x_t, t, prompt, message", [
    (torch.zeros(2, 1, 8, 10), T, PROMPT, r"x_t must be \(B, 1, H, W\), H and W multiples of 4, but is"),
    (torch.zeros(2, 1, 6, 8), T, PROMPT, "x_t must be"),
    (torch.zeros(2, 3, 8, 8), T, PROMPT, "x_t must be"),
    (torch.zeros(1, 8, 8), T[:1], PROMPT[:1], "x_t must be"),
    (X, T[:1], PROMPT, "one timestep for each of the 2 images"),
    (X, T[:, None], PROMPT, "one timestep for each of the 2 images"),
    (X, T, PROMPT[0], "prompt must hold a row"),
    (X, T, PROMPT[:1], "prompt must hold a row"),
    (X, T, PROMPT.float(), "prompt must hold a row"),
    (X, T, PROMPT - 1, "tokens run from 0"),
    (X, T, PROMPT + len(VOCABULARY) - 1, "tokens run from 0"),
])
def test_what_does_not_fit_is_refused(unet, x_t, t, prompt, message):
    with pytest.raises(ValueError, match=message):
        unet(x_t, t, prompt)


@pytest.mark.parametrize("patch", [0, 3, 8])
def test_other_patches_are_refused(patch):
    with pytest.raises(ValueError, match=f"patch must be 1, 2 or 4, not {patch}"):
        UNet(patch=patch)


# The core: four files that are read in one evening, in this order

CORE = ["diffusion", "words", "unet", "controlnet"]


def test_the_core_is_short_and_imports_torch_and_what_was_read_before():
    sources = [(Path(minicnet.__file__).parent / f"{name}.py").read_text() for name in CORE]
    assert sum(source.count("\n") for source in sources) <= 760
    for i, source in enumerate(sources):
        known = sys.stdlib_module_names | {"torch"} | {f"minicnet.{name}" for name in CORE[:i]}
        for node in ast.walk(ast.parse(source)):
            modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                       [node.module] if isinstance(node, ast.ImportFrom) else [])
            assert all(module in known or module.split(".")[0] in known for module in modules), CORE[i]
