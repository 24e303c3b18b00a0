"""ControlNet: what it must not change, what must wake up when, and its formulas computed by hand.

Bases here are random, never fresh: behind the zero convolution that ends a fresh UNet, any control changes nothing.
That a fresh control changes nothing behind any base is shown in test_identity.py.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicnet.controlnet import Control, ControlledBlock, ControlNet, controlled, freeze, zero_conv
from minicnet.diffusion import guided
from minicnet.unet import CrossAttention, ResBlock, SelfAttention, UNet
from minicnet.words import TextEncoder, tokenize


@pytest.fixture
def base(randomised):
    return freeze(randomised(UNet(channels=16, multipliers=(1, 2), patch=2)))


@pytest.fixture
def fresh(base):
    """A ControlNet as it is before training."""
    return ControlNet(base)


@pytest.fixture
def trained(base, randomised):
    """A ControlNet as it might be long after."""
    return randomised(ControlNet(base), std=0.3, seed=1)


def inputs():
    """x_t, t, prompt of 3 images."""
    x_t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x_t, torch.tensor([0, 300, 999]), tokenize(["a red seven on navy paper", "a two", ""])


def edges(C=1, seed=0):
    return (torch.rand(3, C, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


def storages(module):
    return {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}


def tensors(control):
    return [*control.skips, control.middle]


def conv(x, layer):
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


def assert_same(control, expected):
    for a, b in zip(tensors(control), expected, strict=True):
        assert torch.equal(a, b)


# Zero convolutions


def test_a_zero_conv_is_a_1x1_convolution_of_zeros_that_trains():
    for conv, shape in [(zero_conv(5), (5, 5, 1, 1)), (zero_conv(5, 3), (3, 5, 1, 1))]:
        assert conv.weight.shape == shape and conv.bias.shape == shape[:1]
        assert not any(parameter.any() or not parameter.requires_grad for parameter in conv.parameters())


def test_the_gradient_of_a_zero_conv_is_zero_for_its_input_but_not_for_its_weights():
    """y = W x + b: dy/dW = x, dy/db = 1, dy/dx = W = 0."""
    conv, x = zero_conv(2, 1), torch.randn(1, 2, 1, 1, requires_grad=True)
    conv(x).sum().backward()
    assert torch.equal(conv.weight.grad[0, :, 0, 0], x[0, :, 0, 0]) and conv.bias.grad == 1 and not x.grad.any()


def test_two_zero_convs_in_series_never_wake():
    """The second one's input is zero, and so is the gradient of its weights; the first one gets none through it."""
    first, second = zero_conv(4), zero_conv(4)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    x, target = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3) + 1
    for _ in range(10):
        optimizer.zero_grad()
        F.mse_loss(second(first(x)), target).backward()
        optimizer.step()
    assert not first.weight.any() and not first.bias.any() and not second.weight.any()
    assert second.bias.all()  # it learns the mean and cannot see x


# Freezing and copying


def test_freezing_locks_a_module_and_forgets_its_gradients(randomised):
    unet = randomised(UNet(channels=8))
    unet(*inputs()).sum().backward()
    assert freeze(unet) is unet
    assert not any(module.training for module in unet.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in unet.parameters())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_control_net_is_a_copy_of_the_encoder_that_trains_in_memory_of_its_own(randomised, frozen):
    base = randomised(UNet(channels=16))
    net = ControlNet(freeze(base) if frozen else base)
    for name, weight in base.encoder.state_dict().items():
        assert torch.equal(weight, net.encoder.state_dict()[name])
    assert storages(net).isdisjoint(storages(base))
    assert all(module.training for module in net.modules()) and all(p.requires_grad for p in net.parameters())
    assert all(module.training != frozen for module in base.modules())
    assert all(parameter.requires_grad != frozen for parameter in base.parameters())
    before = randomised(net, seed=5)(*inputs(), edges())
    randomised(base, seed=6)
    assert_same(net(*inputs(), edges()), tensors(before))


# Learning


def groups(net):
    """The parameters of a ControlNet in the order in which they wake up."""
    *rest, last = net.condition_encoder
    return {
        "output zero convolutions": [*net.zero_skips.parameters(), *net.zero_middle.parameters()],
        "copy": list(net.encoder.parameters()),
        "condition encoder's zero convolution": list(last.parameters()),
        "rest of the condition encoder": [parameter for layer in rest for parameter in layer.parameters()],
    }


def awake(net):
    """Names of the groups whose every parameter has gradient. Each other group must have none at all."""
    names = []
    for name, parameters in groups(net).items():
        with_gradient = [parameter.grad is not None and parameter.grad.any().item() for parameter in parameters]
        assert all(with_gradient) or not any(with_gradient), f"{name} is half awake"
        names += [name] * all(with_gradient)
    return names


def train(net, base, steps, optimizer):
    """Takes steps towards a random eps, and returns which groups had gradient at each of them."""
    eps, table = torch.randn(3, 1, 8, 8), []
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(controlled(base, [(net, edges(), 1)])(*inputs()), eps).backward()
        table.append(awake(net))
        optimizer.step()
    return table


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])
def test_zero_convs_wake_first_then_the_copy_then_the_condition_encoder_and_the_base_never(base, fresh, optimizer):
    before = copy.deepcopy(base.state_dict())
    assert sum(map(len, groups(fresh).values())) == len(list(fresh.parameters()))
    outputs, encoder, last, rest = groups(fresh)
    assert train(fresh, base, 4, optimizer(fresh.parameters(), lr=1e-3)) == [
        [outputs],
        [outputs, encoder, last],
        [outputs, encoder, last, rest],
        [outputs, encoder, last, rest],
    ]
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.parameters())
    assert not any(module.training for module in base.modules())


def test_behind_an_untrained_base_nothing_wakes():
    base = freeze(UNet(channels=16))
    net = ControlNet(base)
    assert train(net, base, 3, torch.optim.SGD(net.parameters(), 0.1)) == [[], [], []]


def test_the_frozen_encoder_keeps_no_graph_and_the_decoder_passes_the_gradient_on(base, trained):
    skips, middle, emb, words = base.encoder(*inputs())
    assert not any(tensor.requires_grad for tensor in [*skips, middle, emb, words.vectors])
    control = trained(*inputs(), edges())
    for residual in tensors(control):
        residual.retain_grad()
    base(*inputs(), control=control).square().sum().backward()
    assert all(residual.grad.any() for residual in tensors(control))


# Where things sit


@pytest.mark.parametrize("multipliers, blocks, skips", [((1,), 1, 2), ((1, 2), 2, 6), ((2, 1, 3), 1, 6)])
def test_a_zero_conv_follows_each_skip_the_middle_and_the_condition_encoder(randomised, multipliers, blocks, skips):
    base = randomised(UNet(channels=8, multipliers=multipliers, blocks=blocks))
    net = ControlNet(base)
    zero_convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and not m.weight.any() and not m.bias.any()]
    assert len(base.encoder(*inputs())[0]) == skips
    assert len(zero_convs) == skips + 1 + 1 and all(conv.kernel_size == (1, 1) for conv in zero_convs)
    assert zero_convs == [net.condition_encoder[-1], *net.zero_skips, net.zero_middle]


@pytest.mark.parametrize("C, p", [(1, 1), (1, 2), (3, 2), (3, 4)])
def test_the_condition_encoder_brings_a_condition_to_the_first_feature_map(randomised, C, p):
    base = UNet(channels=8, patch=p, multipliers=(1,))
    net, condition = randomised(ControlNet(base, C), std=0.3), edges(C)
    *convs, last = (layer for layer in net.condition_encoder if isinstance(layer, nn.Conv2d))
    h = torch.stack([condition[:, c, i::p, j::p] for c in range(C) for i in range(p) for j in range(p)], dim=1)
    for layer in convs:
        h = F.silu(conv(h, layer))
    torch.testing.assert_close(net.encode(condition), conv(h, last), rtol=1e-4, atol=1e-4)
    assert len(convs) == 3 and net.encode(condition).shape == base.encoder.first(torch.zeros(3, 1, 8, 8)).shape


def test_control_by_hand(trained):
    """The hint joins after the first convolution; every skip, and the middle, has a 1x1 convolution of its own."""
    (x_t, t, prompt), condition, encoder = inputs(), edges(), trained.encoder
    emb_and_words = encoder.embed(t, prompt)
    features = [conv(F.pixel_unshuffle(x_t, 2), encoder.conv_in) + trained.condition_encoder(condition)]
    for stage in [*encoder.stages, encoder.middle]:
        features.append(stage(features[-1], *emb_and_words))
    zero_convs = [*trained.zero_skips, trained.zero_middle]
    control = trained(x_t, t, prompt, condition)
    for residual, feature, zero in zip(tensors(control), features, zero_convs, strict=True):
        torch.testing.assert_close(residual, conv(feature, zero), rtol=1e-4, atol=1e-4)
    assert_same(trained(x_t, t, prompt, hint=trained.encode(condition)), tensors(control))


@pytest.mark.parametrize("change", [lambda skips: skips[:-1], lambda skips: [*skips, skips[-1]]])
def test_a_control_with_another_number_of_skips_fits_neither_base_nor_control(base, trained, change):
    control = trained(*inputs(), edges())
    other = Control(change(control.skips), control.middle)
    with pytest.raises(ValueError):
        base(*inputs(), control=other)
    with pytest.raises(ValueError):
        control + other


# Sums and strengths


def some_control(seed):
    generator = torch.Generator().manual_seed(seed)
    *skips, middle = (torch.randn(3, C, H, H, generator=generator) for C, H in [(16, 4), (16, 2), (32, 2)])
    return Control(skips, middle)


def test_controls_add_and_scale_exactly():
    a, b, c = (some_control(seed) for seed in range(3))
    A, B, C = tensors(a), tensors(b), tensors(c)
    assert_same(a + b, [x + y for x, y in zip(A, B)])
    assert_same(a * -0.3, [-0.3 * x for x in A])
    assert_same(0.5 * a + b * 3, [0.5 * x + 3 * y for x, y in zip(A, B)])
    assert_same(sum([a, b, c]), [x + y + z for x, y, z in zip(A, B, C)])
    each = torch.tensor([0.0, 1.0, -2.0]).view(3, 1, 1, 1)  # a strength for each image
    assert_same(each * a, [each * x for x in A])
    assert_same(a * each, [each * x for x in A])
    assert_same(a, tensors(some_control(0)))  # and nothing was changed in place
    assert a == a and a != some_control(0) and len({a, some_control(0)}) == 2


def test_strength_0_is_the_base_even_after_training(base, trained):
    control, plain = trained(*inputs(), edges()), base(*inputs())
    for zero in (0, 0.0, -0.0, torch.tensor(0.0), torch.zeros(3, 1, 1, 1)):
        assert torch.equal(base(*inputs(), control=zero * control), plain)
        assert torch.equal(base(*inputs(), control=control * zero), plain)
    assert torch.equal(controlled(base, [(trained, edges(), 0)])(*inputs()), plain)


def test_a_fresh_net_adds_nothing_to_a_trained_one(base, fresh, trained):
    alone = controlled(base, [(trained, edges(), 0.7)])(*inputs())
    for both in [(fresh, 1 - edges(), 5), (trained, edges(), 0.7)], [(trained, edges(), 0.7), (fresh, edges(), -1)]:
        assert torch.equal(controlled(base, both)(*inputs()), alone)


# The central equation: the base under a sum of controls


@pytest.fixture
def controls(base, trained, randomised):
    """Two trained nets, for edges and for colours, each with its condition and scale."""
    return [(trained, edges(), 0.7), (randomised(ControlNet(base, 3), std=0.3, seed=2), edges(3, seed=1), -1.5)]


def test_the_base_under_a_sum_of_controls_by_hand(base, controls):
    """Each counts with its scale and no other weight; the base counts once, and its encoder never sees a residual."""
    skips, middle, emb, words = base.encoder(*inputs())
    for net, condition, scale in controls:
        control = net(*inputs(), condition)
        skips = [skip + scale * residual for skip, residual in zip(skips, control.skips)]
        middle = middle + scale * control.middle
    expected = base.decoder(skips, middle, emb, words) + base.share(emb)[:, :, None, None] * inputs()[0]
    torch.testing.assert_close(controlled(base, controls)(*inputs()), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(controlled(base, controls[::-1])(*inputs()), expected, rtol=1e-4, atol=1e-4)


def test_without_controls_it_is_the_base_bit_for_bit(base):
    assert torch.equal(controlled(base)(*inputs()), base(*inputs()))


def test_conditions_are_read_once_before_the_first_step_and_still_teach_their_encoder(base, trained):
    condition = edges()
    eps_model = controlled(base, [(trained, condition, 1)])
    expected = eps_model(*inputs())
    condition.zero_()
    assert torch.equal(eps_model(*inputs()), expected)
    expected.square().sum().backward()
    assert all(parameter.grad.any() for parameter in trained.parameters())
    with pytest.raises(ValueError):
        controlled(base, [(trained, 255 * edges(), 1)])


def test_conditions_go_into_both_branches_of_guidance(base, controls):
    (x_t, t, prompt), null = inputs(), torch.zeros_like(inputs()[2])
    eps_model = controlled(base, controls)
    cond, uncond = eps_model(x_t, t, prompt), eps_model(x_t, t, null)
    eps = guided(eps_model, (prompt,), (null,), 2)(x_t, t)
    torch.testing.assert_close(eps, 2 * cond - uncond, rtol=1e-4, atol=1e-4)


# Bad conditions


@pytest.mark.parametrize("condition, message", [
    (torch.zeros(3, 2, 8, 8), r"of shape \(B, 1, H, W\), H and W multiples of 2"),
    (torch.zeros(3, 8, 8), "of shape"),
    (torch.zeros(3, 1, 8, 7), "of shape"),
    (torch.zeros(3, 1, 7, 8), "of shape"),
    (None, "but this is None"),
    (torch.zeros(3, 1, 4, 4), "does not fit x_t"),
    (torch.zeros(3, 1, 2, 2), "does not fit x_t"),
    (torch.zeros(3, 1, 8, 2), "does not fit x_t"),
    (torch.zeros(1, 1, 8, 8), "does not fit x_t"),
    (torch.zeros(3, 1, 8, 8).index_fill(2, torch.tensor(1), -0.01), r"must lie in \[0, 1\]"),
    (torch.zeros(3, 1, 8, 8).index_fill(2, torch.tensor(1), 1.01), r"must lie in \[0, 1\]"),
    (torch.zeros(3, 1, 8, 8).index_fill(2, torch.tensor(1), math.nan), r"must lie in \[0, 1\]"),
])
def test_conditions_that_do_not_fit_are_refused(fresh, condition, message):
    with pytest.raises(ValueError, match=message):
        fresh(*inputs(), condition)


def test_what_the_base_would_refuse_the_control_net_refuses(fresh):
    x_t, t, prompt = inputs()
    for bad in [(x_t.repeat(1, 2, 1, 1), t, prompt), (x_t, t[:1], prompt), (x_t, t, prompt[:1])]:
        with pytest.raises(ValueError):
            fresh(*bad, edges())


# The controlled block

EMB = torch.randn(2, 12, generator=torch.Generator().manual_seed(3))
WORDS = freeze(TextEncoder(24))(tokenize(["a red seven", "a horse"]))
BLOCKS = {
    "residual block": (lambda: ResBlock(16, 16, 12), (EMB, WORDS)),
    "self-attention": (lambda: SelfAttention(16), (EMB, WORDS)),
    "cross-attention": (lambda: CrossAttention(16, 24), (EMB, WORDS)),
    "convolution": (lambda: nn.Conv2d(16, 16, 3, padding=1), ()),
}
any_block = pytest.mark.parametrize("make, args", BLOCKS.values(), ids=BLOCKS.keys())


def x_and_c(condition_channels=3):
    return torch.randn(2, 16, 4, 4), torch.randn(2, condition_channels, 4, 4)


@any_block
def test_at_the_start_a_controlled_block_is_the_block_and_its_copy_has_memory_of_its_own(randomised, make, args):
    for condition_channels in (None, 3):
        block, (x, c) = randomised(make()), x_and_c(condition_channels or 16)
        expected = block(x, *args)
        both = ControlledBlock(block, 16, condition_channels)
        assert both.locked is block and storages(both.copy).isdisjoint(storages(block))
        for strength in (0, 1, -100):
            assert torch.equal(both(x, strength * c, *args), expected)
        assert torch.equal(both.copy(x + both.zero_in(c), *args), expected)


@any_block
def test_a_controlled_block_wakes_from_its_output_and_then_follows_equation_2(randomised, make, args):
    """y_c = F(x; Θ) + Z(F(x + Z(c; Θz1); Θc); Θz2)"""
    block, (x, c) = randomised(make()), x_and_c()
    original = copy.deepcopy(block)
    both = ControlledBlock(block, 16, 3)
    optimizer = torch.optim.SGD([p for p in both.parameters() if p.requires_grad], 0.05)
    for expected in [{"zero_out"}, {"zero_out", "copy", "zero_in"}]:
        optimizer.zero_grad()
        both(x, c, *args).square().mean().backward()
        assert {name.split(".")[0] for name, p in both.named_parameters()
                if p.grad is not None and p.grad.any()} == expected
        optimizer.step()
    y_c = original(x, *args) + conv(both.copy(x + conv(c, both.zero_in), *args), both.zero_out)
    torch.testing.assert_close(both(x, c, *args), y_c, rtol=1e-4, atol=1e-4)
    for (name, weight), trained in zip(original.state_dict().items(), both.copy.state_dict().values()):
        assert torch.equal(weight, block.state_dict()[name])
        assert name == "k.bias" or not torch.equal(weight, trained)  # a key's bias adds the same to all scores
    assert all(p.grad is None and not p.requires_grad for p in block.parameters())


def test_the_locked_half_never_drops_anything(randomised):
    block = randomised(nn.Sequential(nn.Conv2d(16, 16, 1), nn.Dropout(0.5)))
    x, c = x_and_c(16)
    both = ControlledBlock(block, 16)
    assert both.copy[1].training and not both.locked[1].training
    for outer in (both, nn.Sequential(both)):
        assert outer.train() is outer and both.training and both.copy[1].training and not both.locked[1].training
        assert torch.equal(both(x, c), block(x))
        assert outer.eval() is outer and not any(module.training for module in outer.modules())
