"""The UNet's parts against plain loops and PyTorch's own layers, and the whole against what must not change it."""

import ast
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minicnet
from minicnet.unet import Downsample, ResBlock, SelfAttention, UNet, Upsample, timestep_embedding

TINY = dict(channels=16, multipliers=(1, 2), patch=2)


@pytest.fixture
def unet(randomised):
    return randomised(UNet(**TINY))


def inputs(B=3, C=1, H=8, W=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(B, C, H, W, generator=generator)
    return x_t, torch.randint(1000, (B,), generator=generator), torch.randint(11, (B,), generator=generator)


# Timestep embedding


def test_timestep_embedding_is_sines_and_cosines():
    t, dim = torch.tensor([0, 1, 2, 17, 500, 999]), 12
    embedding = timestep_embedding(t, dim)
    assert embedding.shape == (6, dim)
    for b, i in itertools.product(range(6), range(dim // 2)):
        angle = t[b].item() / 10_000 ** (2 * i / dim)
        assert embedding[b, i].item() == pytest.approx(math.sin(angle), abs=3e-4)
        assert embedding[b, dim // 2 + i].item() == pytest.approx(math.cos(angle), abs=3e-4)


@pytest.mark.parametrize("dim", [8, 32])
def test_each_timestep_has_an_embedding_of_its_own(dim):
    embedding = timestep_embedding(torch.arange(1000), dim)
    distance = torch.cdist(embedding, embedding) + 10 * torch.eye(1000)
    assert distance.min() > 0.1


# Blocks


def group_norm(x, norm):
    """GroupNorm by its definition: 8 groups of channels, each with mean 0 and variance 1 over channels and pixels."""
    groups = x.reshape(len(x), 8, -1)
    variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
    x = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def conv(x, layer):
    """A convolution of stride 1 that keeps the size, as a sum over the kernel's shifts."""
    (k, _), (H, W) = layer.kernel_size, x.shape[2:]
    padded = F.pad(x, [k // 2] * 4)
    out = layer.bias[:, None, None]
    for i, j in itertools.product(range(k), range(k)):
        out = out + torch.einsum("oc,bchw->bohw", layer.weight[:, :, i, j], padded[:, :, i:i + H, j:j + W])
    return out


def silu(x):
    return x / (1 + (-x).exp())


@pytest.mark.parametrize("in_channels, out_channels", [(16, 16), (16, 8)])
def test_res_block_by_hand(randomised, in_channels, out_channels):
    block = randomised(ResBlock(in_channels, out_channels, 12))
    x, emb = torch.randn(2, in_channels, 5, 4), torch.randn(2, 12)
    h = conv(silu(group_norm(x, block.norm1)), block.conv1)
    h = h + (emb @ block.emb.weight.T + block.emb.bias).view(2, out_channels, 1, 1)
    h = conv(silu(group_norm(h, block.norm2)), block.conv2)
    shortcut = x if in_channels == out_channels else conv(x, block.shortcut)
    torch.testing.assert_close(block(x, emb), shortcut + h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_pytorch_s_multihead_attention(randomised, heads):
    block = randomised(SelfAttention(16, heads), std=0.5)
    oracle = nn.MultiheadAttention(16, heads, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(block.qkv.weight.flatten(1))
        oracle.in_proj_bias.copy_(block.qkv.bias)
        oracle.out_proj.weight.copy_(block.proj.weight.flatten(1))
        oracle.out_proj.bias.copy_(block.proj.bias)
    x = torch.randn(2, 16, 3, 5)
    tokens = group_norm(x, block.norm).flatten(2).transpose(1, 2)  # (B, H*W, C)
    out = oracle(tokens, tokens, tokens)[0].transpose(1, 2).view_as(x)
    torch.testing.assert_close(block(x), x + out, rtol=1e-4, atol=1e-5)


def test_attention_does_not_care_where_a_pixel_sits(randomised):
    block = randomised(SelfAttention(8), std=0.5)
    x, order = torch.randn(2, 8, 4, 4), torch.randperm(16)

    def shuffle(x):
        return x.flatten(2)[:, :, order].view(2, 8, 4, 4)

    torch.testing.assert_close(block(shuffle(x)), shuffle(block(x)))
    assert not torch.allclose(block(x)[0], block(torch.cat([x[:1] + torch.randn(8, 1, 1), x[1:]]))[0])


def test_downsample_keeps_every_second_pixel_of_a_convolution(randomised):
    block, x = randomised(Downsample(8)), torch.randn(2, 8, 6, 4)
    torch.testing.assert_close(block(x), conv(x, block.conv)[:, :, ::2, ::2])


def test_upsample_doubles_every_pixel_before_a_convolution(randomised):
    block, x = randomised(Upsample(16, 8)), torch.randn(2, 16, 3, 4)
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(block(x), conv(doubled, block.conv), rtol=1e-4, atol=1e-5)


# The whole


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (2, 1, 3)])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("C, H, W", [(1, 16, 32), (3, 32, 16)])
def test_eps_is_shaped_like_x_t(randomised, patch, multipliers, blocks, C, H, W):
    unet = randomised(UNet(C, channels=8, multipliers=multipliers, blocks=blocks, patch=patch))
    x_t, t, label = inputs(2, C, H, W)
    eps = unet(x_t, t, label)
    assert eps.shape == x_t.shape and eps.dtype == torch.float32 and eps.isfinite().all()
    assert eps.std(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("H, W", [(28, 28), (32, 32), (16, 24), (4, 4)])
def test_any_size_that_halves_often_enough_will_do(unet, H, W):
    x_t, t, label = inputs(2, 1, H, W)
    assert unet(x_t, t, label).shape == (2, 1, H, W)


def test_a_fresh_unet_guesses_that_there_is_no_noise():
    assert torch.equal(UNet(**TINY)(*inputs()), torch.zeros(3, 1, 8, 8))


def test_in_a_fresh_unet_each_block_passes_on_what_it_is_given():
    seen = []
    unet = UNet(**TINY)
    for block in unet.modules():
        if isinstance(block, ResBlock | SelfAttention):
            block.register_forward_hook(lambda block, args, out: seen.append((block, args[0], out)))
    unet(*inputs())
    assert len(seen) == 12
    for block, x, out in seen:
        assert torch.equal(out, block.shortcut(x) if isinstance(block, ResBlock) else x)


@pytest.mark.parametrize("multipliers, blocks, expected", [
    ((1,), 1, [(16, 8), (16, 8)]),
    ((1, 2), 1, [(16, 8), (16, 8), (16, 4), (32, 4)]),
    ((1, 2), 2, [(16, 8), (16, 8), (16, 8), (16, 4), (32, 4), (32, 4)]),
    ((2, 1, 3), 1, [(16, 8), (32, 8), (32, 4), (16, 4), (16, 2), (48, 2)]),
])
def test_the_first_convolution_and_every_stage_leave_a_skip(randomised, multipliers, blocks, expected):
    unet = randomised(UNet(channels=16, multipliers=multipliers, blocks=blocks, patch=2))
    x_t, t, label = inputs(2, 1, 16, 16)
    skips, middle, emb = unet.encoder(x_t, t, label)
    assert [(skip.shape[1], skip.shape[2]) for skip in skips] == expected
    assert unet.encoder.skip_channels == [channels for channels, _ in expected]
    assert middle.shape == skips[-1].shape
    assert torch.equal(skips[0], unet.encoder.first(x_t))


@pytest.mark.parametrize("multipliers, blocks", [((1, 2), 1), ((1, 1, 2), 2)])
def test_the_decoder_takes_each_skip_once_the_last_one_first(randomised, multipliers, blocks):
    unet = randomised(UNet(channels=8, multipliers=multipliers, blocks=blocks, patch=1))
    skips, middle, emb = unet.encoder(*inputs(2))
    h, left = middle, list(skips)
    for stage in unet.decoder.stages:
        h = stage(torch.cat([h, left.pop()], dim=1), emb)
    assert left == []
    eps = conv(silu(group_norm(h, unet.decoder.norm_out)), unet.decoder.conv_out)
    torch.testing.assert_close(unet.decoder(skips, middle, emb), eps, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change", [lambda skips: skips[1:], lambda skips: [skips[0], *skips]])
def test_the_decoder_refuses_another_number_of_skips(unet, change):
    skips, middle, emb = unet.encoder(*inputs())
    with pytest.raises(ValueError):
        unet.decoder(change(skips), middle, emb)


def test_the_decoder_listens_to_every_skip_and_to_the_middle(unet):
    skips, middle, emb = unet.encoder(*inputs())
    eps = unet.decoder(skips, middle, emb)
    for i in range(len(skips)):
        other = [torch.randn_like(skip) if i == j else skip for j, skip in enumerate(skips)]
        assert (unet.decoder(other, middle, emb) - eps).abs().mean() > 0.01
    assert (unet.decoder(skips, torch.randn_like(middle), emb) - eps).abs().mean() > 0.01


def test_attention_sits_at_the_coarsest_level_only():
    levels = []
    unet = UNet(channels=8, multipliers=(1, 2, 3), blocks=2, patch=1)
    for block in unet.modules():
        if isinstance(block, SelfAttention):
            block.register_forward_hook(lambda block, args, out: levels.append(out.shape[1:]))
    unet(*inputs(2, 1, 16, 16))
    assert levels == [(24, 4, 4)] * (2 + 1 + 3)  # encoder, middle, decoder


@pytest.mark.parametrize("p", [1, 2, 4])
def test_a_patch_of_pixels_becomes_channels_and_pixels_again(randomised, p):
    unet = randomised(UNet(2, channels=8, multipliers=(1,), patch=p))
    x_t = torch.randn(2, 2, 8, 8)
    folded = torch.stack([x_t[:, c, i::p, j::p] for c in range(2) for i in range(p) for j in range(p)], dim=1)
    torch.testing.assert_close(unet.encoder.first(x_t), conv(folded, unet.encoder.conv_in), rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # with a bias alone, the last convolution paints the same patch everywhere
        unet.decoder.conv_out.weight.zero_()
    skips, middle, emb = unet.encoder(x_t, torch.tensor([1, 2]), torch.tensor([3, 4]))
    patch = unet.decoder.conv_out.bias.view(2, p, p)
    torch.testing.assert_close(unet.decoder(skips, middle, emb), patch.repeat(1, 8 // p, 8 // p).expand(2, 2, 8, 8))


def test_eps_holds_a_share_of_x_t_that_depends_on_timestep_and_label(unet):
    x_t, t, label = inputs()
    skips, middle, emb = unet.encoder(x_t, t, label)
    eps = unet(x_t, t, label) - unet.decoder(skips, middle, emb)
    for b in range(3):
        share = (unet.share.weight[0] * emb[b]).sum() + unet.share.bias[0]
        torch.testing.assert_close(eps[b], share * x_t[b], rtol=1e-3, atol=1e-3)


def test_the_embedding_by_hand(unet):
    _, t, label = inputs()
    first, second = unet.encoder.time[0], unet.encoder.time[2]
    h = silu(timestep_embedding(t, 16) @ first.weight.T + first.bias)
    expected = silu(h @ second.weight.T + second.bias + unet.encoder.label.weight[label])
    torch.testing.assert_close(unet.encoder.embed(t, label), expected, rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_do_not_see_each_other(unet):
    x_t, t, label = inputs(5)
    together = unet(x_t, t, label)
    for b in range(5):
        alone = unet(x_t[b:b + 1], t[b:b + 1], label[b:b + 1])
        torch.testing.assert_close(together[b:b + 1], alone, rtol=1e-3, atol=1e-3)


def test_every_label_and_every_timestep_makes_a_difference(unet):
    x_t = inputs(1)[0].expand(11, 1, 8, 8)
    t, label = torch.full((11,), 300), torch.arange(11)
    for eps in (unet(x_t, t, label), unet(x_t, 90 * label, t * 0 + 3)):
        eps = eps.flatten(1)
        assert (torch.cdist(eps, eps) + 10 * torch.eye(11)).min() > 1e-2


def test_the_null_label_is_one_more_label(unet):
    x_t, t, _ = inputs(11)
    label = torch.arange(11)
    before = unet(x_t, t, label)
    assert unet.null_label == 10 and UNet(**TINY, num_labels=3).null_label == 3
    assert unet.encoder.label.num_embeddings == 11
    with torch.no_grad():
        unet.encoder.label.weight[unet.null_label] += 1
    after = unet(x_t, t, label)
    assert torch.equal(after[:10], before[:10]) and not torch.allclose(after[10], before[10])


def test_every_parameter_is_used(unet):
    unet(*inputs()).square().sum().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_each_skip_and_the_middle_pass_gradient_on_to_the_first_convolution(unet):
    skips, middle, _ = unet.encoder(*inputs())
    for feature in [*skips, middle]:
        gradient, = torch.autograd.grad(feature.square().sum(), unet.encoder.conv_in.weight, retain_graph=True)
        assert gradient.any()


def test_training_mode_changes_nothing(unet):
    """No dropout, no batch norm: a locked base would not be itself any more."""
    assert torch.equal(unet.train()(*inputs()), unet.eval()(*inputs()))
    assert not list(unet.buffers())


def test_the_default_unet_is_the_one_that_all_weights_are_for():
    unet = UNet()
    assert unet.settings == dict(in_channels=1, num_labels=10, channels=32, multipliers=[1, 2], blocks=1, patch=2)
    assert sum(p.numel() for p in unet.parameters()) == 675_845


def test_settings_and_weights_make_the_same_unet_again(randomised):
    unet = randomised(UNet(3, 5, channels=8, multipliers=(1, 3), blocks=2, patch=1))
    again = UNet(**unet.settings)
    again.load_state_dict(unet.state_dict())
    x_t, t, _ = inputs(2, 3)
    label = torch.tensor([0, 5])
    assert torch.equal(unet(x_t, t, label), again(x_t, t, label))


@pytest.mark.parametrize("shape", [(2, 1, 8, 10), (2, 1, 6, 8), (2, 3, 8, 8), (1, 8, 8), (2, 1, 8), (2, 1, 1, 8, 8),
                                   (2, 1, 8, 8, 8)])
def test_images_that_do_not_fit_are_refused(unet, shape):
    with pytest.raises(ValueError, match=r"x_t must be \(B, 1, H, W\), H and W multiples of 4, but is"):
        unet(torch.zeros(shape), torch.zeros(shape[0]).long(), torch.zeros(shape[0]).long())


@pytest.mark.parametrize("t, label", [([1], [1, 2]), ([1, 2], [1]), ([1, 2], 3), (1, [1, 2]), ([[1], [2]], [1, 2]),
                                      ([1, 2, 3], [1, 2, 3])])
def test_timesteps_and_labels_that_do_not_fit_are_refused(unet, t, label):
    with pytest.raises(ValueError, match="one integer for each of the 2 images"):
        unet(torch.zeros(2, 1, 8, 8), torch.tensor(t), torch.tensor(label))


@pytest.mark.parametrize("label", [[0, 11], [-1, 0], [1.0, 2.0]])
def test_labels_out_of_range_or_not_whole_are_refused(unet, label):
    with pytest.raises(ValueError):
        unet(torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor(label))


def test_no_images_pass_the_check(unet):
    none = torch.zeros(0).long()
    unet.encoder.check(torch.zeros(0, 1, 8, 8), none, none)


@pytest.mark.parametrize("patch", [0, 3, 8])
def test_other_patches_are_refused(patch):
    with pytest.raises(ValueError, match=f"patch must be 1, 2 or 4, not {patch}"):
        UNet(patch=patch)


def test_a_unet_computes_in_float64_if_asked(unet):
    x_t, t, label = inputs()
    expected = unet(x_t, t, label).double()
    torch.testing.assert_close(unet.double()(x_t.double(), t, label), expected, rtol=1e-3, atol=1e-3)


# The core


def core(name):
    return (Path(minicnet.__file__).parent / name).read_text()


def test_the_core_stays_short_enough_for_one_evening():
    lines = [core(name).count("\n") for name in ("diffusion.py", "unet.py", "controlnet.py")]
    assert sum(lines) <= 580


@pytest.mark.parametrize("name", ["diffusion.py", "unet.py", "controlnet.py"])
def test_the_core_imports_torch_and_nothing_of_minicnet(name):
    roots = set()
    for node in ast.walk(ast.parse(core(name))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            roots.add(node.module.split(".")[0])
    assert roots <= {"torch", "tqdm", "math", "copy", "dataclasses"}
