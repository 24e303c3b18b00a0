"""ControlNet: what it must not change, what must wake when, and its equations.

Bases here are random, never fresh: behind the zero convolution that ends a fresh UNet, any control
changes nothing.
"""

import copy
import random

import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicnet.controlnet import (
    Conditioning,
    Control,
    ControlledBlock,
    ControlNet,
    controlled,
    freeze,
    zero_conv,
)
from minicnet.unet import CrossAttention, ResBlock, SelfAttention, UNet
from minicnet.words import LENGTH, VOCABULARY, TextEncoder, tokenize

each_device = pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())


@pytest.fixture
def base(randomised):
    return freeze(randomised(UNet(channels=16, multipliers=(1, 2), patch=2)))


@pytest.fixture
def trained(base, randomised):
    """A ControlNet as it might be after training."""
    return randomised(ControlNet(base), std=0.3, seed=1)


def inputs():
    """x_t, t, prompt of 3 images."""
    x_t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x_t, torch.tensor([0, 300, 999]), tokenize(["a red seven on navy paper", "a two", ""])


def edges(C=1, seed=0):
    return (torch.rand(3, C, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


def predict(base, *controls):
    """Return eps of the base under these controls."""
    x_t, t, prompt = inputs()
    return controlled(base, prompt, controls)(x_t, t)


def storages(module):
    return {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}


def conv(x, layer):
    return oracles.convolution(x, layer.weight, layer.bias)


def assert_close(control, expected, **tolerance):
    for a, b in zip([*control.skips, control.middle], expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance or dict(rtol=1e-4, atol=1e-4))


# Zero convolutions


def test_a_zero_conv_has_gradient_for_its_weights_and_at_first_none_for_its_input():
    """y = W x + b: dy/dW = x, dy/db = 1, dy/dx = W = 0."""
    layer, x = zero_conv(2, 1), torch.randn(1, 2, 1, 1, requires_grad=True)
    assert not layer.weight.any() and not layer.bias.any() and zero_conv(5).weight.shape[0] == 5
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad, x) and layer.bias.grad == 1 and not x.grad.any()


# Freezing and copying


@pytest.mark.parametrize("frozen", [True, False])
def test_a_control_net_trains_a_copy_of_the_encoder_in_memory_of_its_own(randomised, frozen):
    base = randomised(UNet(channels=16))
    base(*inputs()).sum().backward()
    net = ControlNet(freeze(base) if frozen else base)
    assert storages(net).isdisjoint(storages(base))
    assert all(map(torch.equal, base.encoder.parameters(), net.encoder.parameters()))
    assert all(m.training for m in net.modules()) and all(p.requires_grad for p in net.parameters())
    assert all(module.training != frozen for module in base.modules())
    assert all((p.grad is None) == frozen != p.requires_grad for p in base.parameters())


# Learning


def groups(net):
    """The parameters of a ControlNet in the order in which they wake."""
    *rest, last = net.condition_encoder
    return {
        "zero convolutions": list(net.zero_convs.parameters()),
        "copy": list(net.encoder.parameters()),
        "condition encoder's zero convolution": list(last.parameters()),
        "condition encoder's other convolutions": [p for layer in rest for p in layer.parameters()],
    }


def awake_at_each_step(net, base, steps, optimizer):
    """Train towards a random eps. Return the groups whose every parameter has gradient, by step."""
    eps, table = torch.randn(3, 1, 8, 8), []
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(predict(base, (net, edges(), 1)), eps).backward()
        awake = {name: {p.grad is not None and p.grad.any().item() for p in parameters}
                 for name, parameters in groups(net).items()}
        assert all(len(some) == 1 for some in awake.values()), "a group is half awake"
        table.append([name for name, some in awake.items() if some == {True}])
        optimizer.step()
    return table


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_zero_convs_wake_first_then_the_copy_then_the_condition_encoder_and_the_base_never(
        base, optimizer):
    net, before = ControlNet(base), copy.deepcopy(base.state_dict())
    names = list(groups(net))
    assert sum(map(len, groups(net).values())) == len(list(net.parameters()))
    table = awake_at_each_step(net, base, 4, optimizer(net.parameters(), lr=1e-3))
    assert table == [names[:1], names[:3], names, names]
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())
    assert not any(p.grad is not None or p.requires_grad for p in base.parameters())


def test_behind_an_untrained_base_nothing_wakes():
    base = freeze(UNet(channels=16))
    net = ControlNet(base)
    assert awake_at_each_step(net, base, 2, torch.optim.SGD(net.parameters(), 0.1)) == [[], []]


# Where things sit


@torch.no_grad()
@pytest.mark.parametrize("multipliers, blocks", [((1,), 1), ((1, 2), 2), ((2, 1, 3), 1)])
def test_a_zero_conv_follows_each_skip_and_the_middle(randomised, multipliers, blocks):
    """With multiples of the identity in their place, a control consists of the base's features."""
    base = randomised(UNet(channels=8, multipliers=multipliers, blocks=blocks))
    net, (skips, middle, *_) = ControlNet(base), base.encoder(*inputs())
    for i, layer in enumerate([*net.zero_convs.skips, net.zero_convs.middle]):
        layer.weight.copy_((i + 1) * torch.eye(len(layer.weight))[:, :, None, None])
    expected = [(i + 1) * feature for i, feature in enumerate([*skips, middle])]
    assert_close(net(*inputs(), edges()), expected)


@torch.no_grad()
def test_the_encoded_condition_is_added_to_the_copy_s_first_convolution(trained):
    """A hint that is the same everywhere acts like a larger bias."""
    hint = torch.randn(1, 16, 1, 1).expand(3, 16, 4, 4)
    control = trained(*inputs(), hint=hint)
    trained.encoder.conv_in.bias += hint[0, :, 0, 0]
    assert_close(trained(*inputs(), hint=0 * hint), [*control.skips, control.middle])
    control = trained(*inputs(), hint=trained.encode(edges()))
    assert_close(trained(*inputs(), edges()), [*control.skips, control.middle])


@pytest.mark.parametrize("C, p", [(1, 1), (1, 2), (3, 2), (3, 4)])
def test_the_condition_encoder_brings_a_condition_to_the_first_feature_map(randomised, C, p):
    net = randomised(ControlNet(UNet(channels=8, patch=p, multipliers=(1,)), C), std=0.3)
    *convs, last = (layer for layer in net.condition_encoder if isinstance(layer, nn.Conv2d))
    h = oracles.space_to_depth(edges(C), p)
    for layer in convs:
        h = F.silu(conv(h, layer))
    torch.testing.assert_close(net.encode(edges(C)), conv(h, last), rtol=1e-4, atol=1e-4)
    assert [layer.weight.shape[0] for layer in convs] == [4, 4, 8]


@torch.no_grad()
def test_a_control_that_carries_another_image_s_features_makes_the_decoder_draw_that_image(base):
    """The residuals go to the skips and the middle, and never into the running encoder."""
    x_t, t, prompt = inputs()
    t = torch.tensor([100, 300, 500])
    (a, a_middle, *_), (b, b_middle, *_) = (base.encoder(x, t, prompt) for x in (x_t, x_t.flip(2)))
    control = Control([y - x for x, y in zip(a, b)], b_middle - a_middle)
    alpha_bar = torch.from_numpy(oracles.cosine_alpha_bar(1000))[t].float().view(3, 1, 1, 1)
    v = [base(x, t, prompt, control=c) - (1 - alpha_bar).sqrt() * x
         for x, c in ((x_t, control), (x_t.flip(2), None))]
    torch.testing.assert_close(*v, rtol=1e-3, atol=1e-3)
    for change in (control.skips[:-1], [*control.skips, control.middle]):
        for use in (control.__add__, lambda other: base(x_t, t, prompt, control=other)):
            with pytest.raises(ValueError):
                use(Control(change, control.middle))


# Sums, strengths and times


def test_controls_add_and_scale_exactly():
    a, b, c = (Control(list(torch.randn(2, 3, 4, 8, 8)), torch.randn(3, 4, 8, 8)) for _ in range(3))
    A, B, C = (torch.stack([*control.skips, control.middle]) for control in (a, b, c))
    each = torch.tensor([0.0, 1.0, -2.0]).view(3, 1, 1, 1)  # a strength for each image
    for control, expected in [
            (a + b, A + B), (0.5 * a + b * 3, 0.5 * A + 3 * B), (sum([a, b, c]), A + B + C), (a, A),
            (each * a, A * each), (a * each, A * each)]:
        assert_close(control, expected, rtol=0, atol=0)
    assert a == a != b


def test_residuals_are_summed_with_their_strengths_and_the_base_counts_once(
        base, trained, randomised):
    """eps_theta(x_t, t, c_t, c_f) under the sum of s_i Z_i, section 3.4."""
    other, c, d = randomised(ControlNet(base, 3), std=0.3, seed=2), edges(), edges(3, seed=1)
    a, b = trained(*inputs(), c), other(*inputs(), d)
    expected = base(*inputs(), control=0.7 * a + -1.5 * b)
    for controls in ([(trained, c, 0.7), (other, d, -1.5)], [(other, d, -1.5), (trained, c, 0.7)],
                     [(trained, c, 0.5), Conditioning(other, d, -1.5), (trained, c, 0.2)]):
        torch.testing.assert_close(predict(base, *controls), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(predict(base), base(*inputs()))
    assert torch.equal(predict(base, (trained, c)), base(*inputs(), control=a))


@pytest.mark.parametrize("start, end, acting", [
    (0, 1, [999, 500, 499, 0]), (0.5, 1, [499, 0]), (0, 0.5, [999, 500]), (0.25, 0.75, [500, 499]),
    (0.4, 0.45, []), (1 - 500 / 999, 1, [500, 499, 0]), (0, 1 - 500 / 999, [999])])
def test_a_control_acts_from_its_start_until_just_before_its_end_and_else_leaves_the_base_as_it_is(
        base, trained, start, end, acting):
    x_t, _, prompt = inputs()
    for t in (999, 500, 499, 0):  # sampling goes from 999 to 0
        t = torch.full((3,), t)
        eps = controlled(base, prompt, [Conditioning(trained, edges(), 1, start, end)])(x_t, t)
        under = trained(x_t, t, prompt, edges()) if t[0] in acting else None
        assert torch.equal(eps, base(x_t, t, prompt, control=under))


# Bad conditions


@pytest.mark.parametrize("condition, message", [
    (torch.zeros(3, 2, 8, 8), r"\(B, 1, H, W\), with H and W multiples of 2"),
    (torch.zeros(3, 8, 8), "must be"),
    (torch.zeros(3, 1, 8, 7), "must be"),
    (torch.zeros(3, 1, 7, 8), "must be"),
    (None, "but is None"),
    (torch.zeros(3, 1, 4, 4), "does not fit x_t"),
    (torch.zeros(3, 1, 2, 2), "does not fit x_t"),
    (torch.zeros(3, 1, 8, 2), "does not fit x_t"),
    (torch.zeros(1, 1, 8, 8), "does not fit x_t"),
    (torch.full((3, 1, 8, 8), -0.01), r"must lie in \[0, 1\]"),
    (torch.full((3, 1, 8, 8), 1.01), r"must lie in \[0, 1\]"),
    (torch.full((3, 1, 8, 8), torch.nan), r"must lie in \[0, 1\]"),
])
def test_conditions_that_do_not_fit_are_refused(trained, condition, message):
    with pytest.raises(ValueError, match=message):
        trained(*inputs(), condition)


def test_a_control_net_refuses_what_the_base_would_refuse(trained):
    x_t, t, prompt = inputs()
    with pytest.raises(ValueError, match="t must hold one timestep"):
        trained(x_t, t[:1], prompt, edges())


# The controlled block

EMB = torch.randn(2, 12, generator=torch.Generator().manual_seed(3))
WORDS = freeze(TextEncoder(24))(tokenize(["a red seven", "a horse"]))
BLOCKS = {
    "residual block": (lambda: ResBlock(16, 16, 12), (EMB, WORDS)),
    "self-attention": (lambda: SelfAttention(16), (EMB, WORDS)),
    "cross-attention": (lambda: CrossAttention(16, 24), (EMB, WORDS)),
    "convolution": (lambda: nn.Conv2d(16, 16, 3, padding=1), ()),
}


@pytest.mark.parametrize("make, args", BLOCKS.values(), ids=BLOCKS.keys())
@pytest.mark.parametrize("condition_channels", [None, 3])
def test_a_controlled_block_starts_as_the_block_wakes_from_its_output_and_follows_equation_2(
        randomised, make, args, condition_channels):
    """y_c = F(x; Θ) + Z(F(x + Z(c; Θz1); Θc); Θz2)"""
    block, x, c = randomised(make()), torch.randn(2, 16, 4, 4), torch.randn(
        2, condition_channels or 16, 4, 4)
    original = copy.deepcopy(block)
    both = ControlledBlock(block, 16, condition_channels)
    assert both.locked is block and storages(both.copy).isdisjoint(storages(block))
    assert torch.equal(both(x, -100 * c, *args), block(x, *args))
    optimizer = torch.optim.SGD([p for p in both.parameters() if p.requires_grad], 0.05)
    for expected in [{"zero_out"}, {"zero_out", "copy", "zero_in"}]:
        optimizer.zero_grad()
        both(x, c, *args).square().mean().backward()
        assert {name.split(".")[0] for name, p in both.named_parameters()
                if p.grad is not None and p.grad.any()} == expected
        optimizer.step()
    y_c = original(x, *args) + conv(both.copy(x + conv(c, both.zero_in), *args), both.zero_out)
    torch.testing.assert_close(both(x, c, *args), y_c, rtol=1e-4, atol=1e-4)
    assert not any(p.grad is not None or p.requires_grad for p in block.parameters())
    assert any(not torch.equal(*pair) for pair in zip(block.parameters(), both.copy.parameters()))


def test_the_locked_half_never_drops_anything(randomised):
    both = ControlledBlock(nn.Sequential(nn.Conv2d(16, 16, 1), nn.Dropout(0.5)), 16)
    for outer in (both, nn.Sequential(both).train(), both.train()):
        assert outer.training and both.copy[1].training and not both.locked[1].training
    assert not any(module.training for module in both.eval().modules())


# Controls that add nothing: fresh ones, those of scale 0, and those that do not act at this step


def setting(seed, randomised, device="cpu", **changes):
    """Return a random base, its inputs, and controls that add nothing, the first one fresh."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    C, multipliers = draw.choice([1, 2, 3]), draw.choice([(1,), (2,), (1, 2), (2, 1), (3, 1, 2)])
    blocks, patch = draw.choice([1, 2]), draw.choice([1, 2, 4])
    base = UNet(C, draw.choice([8, 8, 16]), multipliers, blocks, patch)
    freeze(randomised(base, std=draw.choice([0.05, 0.2, 0.5]), seed=seed)).to(device, **changes)
    # At least 2 images, because torch's GroupNorm refuses a single value per group.
    B, multiple = draw.randrange(2, 6), base.encoder.multiple
    H, W = multiple * draw.randrange(1, 4), multiple * draw.randrange(1, 4)
    x_t = torch.randn(B, C, H, W, generator=generator).mul(draw.choice([1, 100]))
    prompt = torch.randint(len(VOCABULARY), (B, LENGTH), generator=generator)
    prompt *= torch.arange(LENGTH) < torch.randint(LENGTH + 1, (B, 1), generator=generator)
    t = torch.randint(1000, (B,), generator=generator)
    controls = []
    for kind in ["fresh", *draw.choices(["fresh", "scale 0", "another time"], k=draw.randrange(4))]:
        K = draw.choice([1, 2, 3])
        gray = torch.rand(B, K, H, W, generator=generator).to(device, **changes)
        net = ControlNet(base, K).to(device, **changes)
        span = (0, 1) if kind != "another time" else (0.6, 1) if t[0] > 500 else (0, 0.4)
        scale = draw.choice([1, -1, 0.3, 1e30, gray[:, :1, :1, :1]]) if kind != "scale 0" else 0
        controls.append(Conditioning(net if kind == "fresh" else randomised(net, seed=seed),
                                     draw.choice([gray, (gray < 0.3).to(gray)]), scale, *span))
    return base, (x_t.to(device, **changes), t.to(device), prompt.to(device)), controls


@each_device
@pytest.mark.parametrize("seeds, changes", [
    (range(10), {}),
    (range(30, 33), {"dtype": torch.float64}),
    (range(40, 43), {"memory_format": torch.channels_last}),
], ids=["float32", "float64", "channels_last"])
def test_controls_that_add_nothing_change_no_bit_and_one_that_has_weights_does(
        randomised, device, seeds, changes):
    for seed in seeds:
        base, (x_t, t, prompt), (first, *others) = setting(seed, randomised, device, **changes)
        plain = base(x_t, t, prompt)
        assert torch.equal(controlled(base, prompt, [first, *others])(x_t, t), plain), seed
        awake = first._replace(net=randomised(first.net, std=0.3), scale=1)
        alone = controlled(base, prompt, [awake])(x_t, t)
        assert alone.isfinite().all() and not torch.equal(alone, plain), seed
        assert torch.equal(controlled(base, prompt, [*others, awake])(x_t, t), alone), seed


@each_device
@pytest.mark.parametrize("base_rounded, control_rounded", [(1, 1), (1, 0), (0, 1)])
def test_controls_that_add_nothing_change_no_bit_in_bf16_of_the_base_the_control_or_both(
        randomised, device, base_rounded, control_rounded):
    for seed in range(50, 52):
        base, inputs, ((net, condition, scale, *_), *_) = setting(seed, randomised, device)
        with torch.autocast(device, torch.bfloat16, enabled=bool(control_rounded)):
            control = scale * net(*inputs, condition)
        with torch.autocast(device, torch.bfloat16, enabled=bool(base_rounded)):
            assert torch.equal(base(*inputs, control=control), base(*inputs)), seed
