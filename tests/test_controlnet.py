"""ControlNet: what it must not change, what must wake up when, and its formulas computed by hand.

Bases here are random, never fresh: behind the zero convolution that ends a fresh UNet, any control changes nothing.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicnet.controlnet import Control, ControlledBlock, ControlNet, freeze, trainable_copy, zero_conv
from minicnet.unet import ResBlock, SelfAttention, UNet

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


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


def inputs(B=3, H=8, W=8, seed=0):
    """x_t, t, label of B images."""
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(B, 1, H, W, generator=generator)
    return x_t, torch.randint(1000, (B,), generator=generator), torch.randint(11, (B,), generator=generator)


def edges(B=3, C=1, H=8, W=8):
    return (torch.rand(B, C, H, W) < 0.3).float()


def storages(module):
    return {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}


def tensors(control):
    return [*control.skips, control.middle]


# Zero convolutions


def test_a_zero_conv_is_a_1x1_convolution_of_zeros():
    conv = zero_conv(5)
    assert conv.weight.shape == (5, 5, 1, 1) and conv.bias.shape == (5,)
    assert not conv.weight.any() and not conv.bias.any()
    assert zero_conv(5, 3).weight.shape == (3, 5, 1, 1)
    assert all(parameter.requires_grad for parameter in conv.parameters())


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


def test_a_copy_of_something_frozen_trains_and_shares_no_memory(base):
    twin = trainable_copy(base.encoder)
    assert all(module.training for module in twin.modules())
    assert all(parameter.requires_grad for parameter in twin.parameters())
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert storages(twin).isdisjoint(storages(base))


def test_a_control_net_copies_the_weights_that_the_encoder_has(base, fresh):
    for name, weight in base.encoder.state_dict().items():
        assert torch.equal(weight, fresh.encoder.state_dict()[name])
    assert storages(fresh).isdisjoint(storages(base))
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_a_base_that_was_not_frozen_stays_as_it_is(randomised):
    unet = randomised(UNet(channels=8))
    ControlNet(unet)
    assert all(module.training for module in unet.modules()) and all(p.requires_grad for p in unet.parameters())


def test_a_control_net_goes_its_own_way(base, fresh, randomised):
    """Its encoder, embeddings included, depends on the base no more."""
    randomised(fresh, seed=5)
    before = fresh(*inputs(), edges := torch.ones(3, 1, 8, 8))
    randomised(base, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(fresh(*inputs(), edges))))


# At the start the output is the base's, bit for bit (in other settings and number formats: test_identity.py)

CONDITIONS = {"nothing": torch.zeros(3, 1, 8, 8), "everything": torch.ones(3, 1, 8, 8),
              "grays": torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS.keys())
@pytest.mark.parametrize("scale", [-3, -0.7, 0, 0.5, 1, 3])
def test_a_fresh_control_net_changes_no_bit(base, fresh, condition, scale, device):
    base, net, condition = base.to(device), fresh.to(device), condition.to(device)
    x_t, t, label = (tensor.to(device) for tensor in inputs())
    assert torch.equal(base(x_t, t, label, control=scale * net(x_t, t, label, condition)), base(x_t, t, label))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("B, H, W", [(1, 8, 8), (2, 4, 12), (7, 28, 28)])
def test_nor_does_it_in_any_mode_or_batch(base, fresh, training, B, H, W):
    x_t, t, label = inputs(B, H, W)
    control = fresh.train(training)(x_t, t, label, edges(B, 1, H, W))
    assert torch.equal(base(x_t, t, label, control=control), base(x_t, t, label))


def test_nor_does_one_that_was_saved_and_loaded(base, fresh, randomised, tmp_path):
    other_base = randomised(UNet(**base.settings), seed=9)
    loaded = ControlNet(other_base)
    torch.save(fresh.state_dict(), tmp_path / "control.pt")
    loaded.load_state_dict(torch.load(tmp_path / "control.pt", weights_only=True))
    x_t, t, label = inputs()
    assert torch.equal(base(x_t, t, label, control=loaded(x_t, t, label, edges())), base(x_t, t, label))
    for name, weight in fresh.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])


def test_a_trained_control_net_does_change_the_output(base, trained):
    x_t, t, label = inputs()
    control, plain = trained(x_t, t, label, edges()), base(x_t, t, label)
    assert (base(x_t, t, label, control=control) - plain).abs().mean() > 0.1
    zeros = 0 * control
    for i in range(len(control.skips)):
        one = Control([*zeros.skips[:i], control.skips[i], *zeros.skips[i + 1:]], zeros.middle)
        assert (base(x_t, t, label, control=one) - plain).abs().mean() > 0.01
    assert (base(x_t, t, label, control=Control(zeros.skips, control.middle)) - plain).abs().mean() > 0.01


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, torch.tensor(0.0), torch.zeros(3, 1, 1, 1)])
def test_strength_0_is_the_base_even_after_training(base, trained, zero):
    x_t, t, label = inputs()
    control = trained(x_t, t, label, edges())
    assert torch.equal(base(x_t, t, label, control=zero * control), base(x_t, t, label))
    assert torch.equal(base(x_t, t, label, control=control * zero), base(x_t, t, label))


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
    (x_t, t, label), condition, eps = inputs(), edges(), torch.randn(3, 1, 8, 8)
    table = []
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(base(x_t, t, label, control=net(x_t, t, label, condition)), eps).backward()
        table.append(awake(net))
        optimizer.step()
    return table


OPTIMIZERS = pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])


@OPTIMIZERS
def test_zero_convs_wake_first_then_the_copy_then_the_condition_encoder(base, fresh, optimizer):
    assert sum(map(len, groups(fresh).values())) == len(list(fresh.parameters()))
    outputs, encoder, last, rest = groups(fresh)
    assert train(fresh, base, 4, optimizer(fresh.parameters(), lr=1e-3)) == [
        [outputs],
        [outputs, encoder, last],
        [outputs, encoder, last, rest],
        [outputs, encoder, last, rest],
    ]


def test_behind_an_untrained_base_nothing_wakes():
    base = freeze(UNet(channels=16))
    net = ControlNet(base)
    assert train(net, base, 3, torch.optim.SGD(net.parameters(), 0.1)) == [[], [], []]


@OPTIMIZERS
def test_training_a_control_net_leaves_no_trace_on_the_base(base, fresh, optimizer):
    before = copy.deepcopy(base.state_dict())
    train(fresh, base, 3, optimizer(fresh.parameters(), lr=1e-3))
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.parameters())
    assert not any(module.training for module in base.modules())


def test_the_frozen_encoder_keeps_no_graph_and_the_decoder_passes_the_gradient_on(base, trained):
    x_t, t, label = inputs()
    seen = []
    base.encoder.register_forward_hook(lambda encoder, args, out: seen.extend([*out[0], *out[1:]]))
    control = trained(x_t, t, label, edges())
    for residual in tensors(control):
        residual.retain_grad()
    base(x_t, t, label, control=control).square().sum().backward()
    assert len(seen) == 6 and not any(tensor.requires_grad for tensor in seen)
    assert all(residual.grad.any() for residual in tensors(control))


def test_every_residual_teaches_the_copy_and_the_condition_encoder(trained):
    for residual in tensors(trained(*inputs(), edges())):
        first = trained.encoder.conv_in.weight, trained.condition_encoder[0].weight
        gradients = torch.autograd.grad(residual.square().sum(), first, retain_graph=True)
        assert all(gradient.any() for gradient in gradients)


# Where things sit


def test_a_zero_conv_follows_each_skip_the_middle_and_the_condition_encoder(randomised):
    for multipliers, blocks, skips in [((1,), 1, 2), ((1, 2), 1, 4), ((1, 2), 2, 6), ((2, 1, 3), 1, 6)]:
        base = randomised(UNet(channels=8, multipliers=multipliers, blocks=blocks))
        net = ControlNet(base)
        zero_convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and not m.weight.any() and not m.bias.any()]
        assert len(base.encoder(*inputs())[0]) == skips
        assert len(zero_convs) == skips + 1 + 1 and all(conv.kernel_size == (1, 1) for conv in zero_convs)
        assert zero_convs == [net.condition_encoder[-1], *net.zero_skips, net.zero_middle]


def conv(x, layer, stride=1):
    return F.conv2d(x, layer.weight, layer.bias, stride=stride, padding=layer.weight.shape[-1] // 2)


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("patch, strides", [(1, (1, 1, 1)), (2, (1, 2, 1)), (4, (1, 2, 2))])
def test_the_condition_encoder_brings_a_condition_to_the_first_feature_map(randomised, patch, strides, C):
    base = UNet(channels=8, patch=patch, multipliers=(1,))
    net, condition = randomised(ControlNet(base, C), std=0.3), edges(2, C, 8, 16)
    first, second, third, last = (layer for layer in net.condition_encoder if isinstance(layer, nn.Conv2d))
    assert [layer.out_channels for layer in (first, second, third, last)] == [16, 32, 8, 8]
    h = condition
    for layer, stride in zip((first, second, third), strides):
        h = F.silu(conv(h, layer, stride))
    torch.testing.assert_close(net.encode(condition), conv(h, last), rtol=1e-4, atol=1e-4)
    assert net.encode(condition).shape == base.encoder.first(torch.zeros(2, 1, 8, 16)).shape


def test_control_by_hand(trained):
    """The hint joins after the first convolution; every skip, and the middle, has a 1x1 convolution of its own."""
    (x_t, t, label), condition, encoder = inputs(), edges(), trained.encoder
    emb = encoder.embed(t, label)
    h = conv(F.pixel_unshuffle(x_t, 2), encoder.conv_in) + trained.condition_encoder(condition)
    features = [h]
    for stage in encoder.stages:
        for block in stage if isinstance(stage, nn.ModuleList) else [stage]:
            h = block(h, emb)
        features.append(h)
    for block in encoder.middle:
        h = block(h, emb)
    features.append(h)
    zero_convs = [*trained.zero_skips, trained.zero_middle]
    control = tensors(trained(x_t, t, label, condition))
    assert len(features) == len(zero_convs) == len(control) == 5
    for residual, feature, zero in zip(control, features, zero_convs):
        torch.testing.assert_close(residual, torch.einsum("oc,bchw->bohw", zero.weight[:, :, 0, 0], feature)
                                   + zero.bias[:, None, None], rtol=1e-3, atol=1e-3)


def test_control_depends_on_all_that_the_base_is_given_and_on_the_condition(trained):
    x_t, t, label = inputs()
    condition = edges()
    control = trained(x_t, t, label, condition)
    for other in [trained(x_t + 1, t, label, condition), trained(x_t, t // 2, label, condition),
                  trained(x_t, t, (label + 1) % 11, condition), trained(x_t, t, label, 1 - condition)]:
        assert all((a - b).abs().mean() > 1e-3 for a, b in zip(tensors(control)[1:], tensors(other)[1:]))


def test_a_hint_is_a_condition_that_was_encoded_before(trained):
    (x_t, t, label), condition, calls = inputs(), edges(), []
    control, hint = trained(x_t, t, label, condition), trained.encode(condition)
    trained.condition_encoder.register_forward_hook(lambda *_: calls.append(1))
    again = trained(x_t, t, label, hint=hint)
    assert all(torch.equal(a, b) for a, b in zip(tensors(control), tensors(again)))
    assert not calls


def test_residuals_are_added_to_what_the_decoder_gets_and_to_nothing_else(base, trained):
    x_t, t, label = inputs()
    seen = []
    base.encoder.register_forward_hook(lambda encoder, args, out: seen.append([*out[0], *out[1:]]))
    base.decoder.register_forward_pre_hook(lambda decoder, args: seen.append([*args[0], *args[1:]]))
    control = trained(x_t, t, label, edges())
    base(x_t, t, label)
    base(x_t, t, label, control=control)
    (*features, emb), given, (*features_again, emb_again), (*given_again, emb_given) = seen
    assert all(torch.equal(a, b) for a, b in zip([*features, emb], given, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(features, features_again, strict=True))
    assert torch.equal(emb, emb_again) and torch.equal(emb, emb_given)
    for residual, feature, controlled in zip(tensors(control), features, given_again, strict=True):
        assert torch.equal(controlled, feature + residual)


# Sums and strengths


def some_control(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = (3, 16, 4, 4), (3, 16, 2, 2), (3, 32, 2, 2)
    *skips, middle = (torch.randn(shape, generator=generator) for shape in shapes)
    return Control(skips, middle)


def assert_same(control, expected):
    for a, b in zip(tensors(control), expected, strict=True):
        assert torch.equal(a, b)


def test_controls_add_and_scale_exactly():
    a, b, c = (some_control(seed) for seed in range(3))
    A, B, C = tensors(a), tensors(b), tensors(c)
    assert_same(a + b, [x + y for x, y in zip(A, B)])
    assert_same(2 * a, [2 * x for x in A])
    assert_same(a * -0.3, [-0.3 * x for x in A])
    assert_same(0.5 * a + b * 3, [0.5 * x + 3 * y for x, y in zip(A, B)])
    assert_same(sum([a, b, c]), [x + y + z for x, y, z in zip(A, B, C)])
    assert_same(sum([a]), A)
    assert_same(a, tensors(some_control(0)))  # and nothing was changed in place


@pytest.mark.parametrize("turn", [lambda s, a: s * a, lambda s, a: a * s], ids=["left", "right"])
def test_each_image_may_have_a_strength_of_its_own(turn):
    a = some_control(0)
    scaled = turn(torch.tensor([0.0, 1.0, -2.0]).view(3, 1, 1, 1), a)
    for b, strength in enumerate([0.0, 1.0, -2.0]):
        assert_same(Control([x[b] for x in scaled.skips], scaled.middle[b]), [strength * x[b] for x in tensors(a)])


def test_controls_are_told_apart_by_identity_not_by_value(trained):
    a, b = (trained(*inputs(), edges()) for _ in range(2))
    assert a == a and a != b and len({a, b}) == 2


def test_controls_of_different_bases_do_not_add():
    a = some_control(0)
    with pytest.raises(ValueError):
        a + Control(a.skips[:1], a.middle)


@pytest.mark.parametrize("change", [lambda skips: skips[:-1], lambda skips: [*skips, skips[-1]]])
def test_a_base_refuses_a_control_with_another_number_of_skips(base, trained, change):
    x_t, t, label = inputs()
    control = trained(x_t, t, label, edges())
    with pytest.raises(ValueError):
        base(x_t, t, label, control=Control(change(control.skips), control.middle))


def test_a_sum_of_controls_counts_the_base_once(base, randomised):
    x_t, t, label = inputs()
    nets = [randomised(ControlNet(base), seed=seed) for seed in (1, 2, 3)]
    controls = [net(x_t, t, label, edges()) for net in nets]
    skips, middle, emb = base.encoder(x_t, t, label)
    for control in controls:
        skips = [skip + residual for skip, residual in zip(skips, control.skips)]
        middle = middle + control.middle
    expected = base.decoder(skips, middle, emb) + base.share(emb)[:, :, None, None] * x_t
    torch.testing.assert_close(base(x_t, t, label, control=sum(controls)), expected, rtol=1e-3, atol=1e-3)
    backwards = base(x_t, t, label, control=sum(reversed(controls)))
    torch.testing.assert_close(backwards, expected, rtol=1e-3, atol=1e-3)


def test_a_fresh_net_adds_nothing_to_a_trained_one(base, fresh, trained):
    x_t, t, label = inputs()
    control, nothing = trained(x_t, t, label, edges()), fresh(x_t, t, label, edges())
    assert torch.equal(base(x_t, t, label, control=control + 5 * nothing), base(x_t, t, label, control=control))
    assert torch.equal(base(x_t, t, label, control=nothing + control), base(x_t, t, label, control=control))


# Bad conditions


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (3, 8, 8), (8, 8), (3, 1, 8)])
def test_conditions_of_another_kind_are_refused(fresh, shape):
    with pytest.raises(ValueError, match=r"of shape \(B, 1, H, W\)"):
        fresh(*inputs(), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (3, 1, 9, 9), (3, 1, 2, 2), (3, 1, 8, 2), (3, 1, 8, 7), (3, 1, 7, 8),
                                   (2, 1, 8, 8), (1, 1, 8, 8)])
def test_conditions_of_another_size_than_the_images_are_refused(fresh, shape):
    with pytest.raises(ValueError):
        fresh(*inputs(), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 16, 2, 2), (3, 16, 1, 1), (1, 16, 4, 4), (3, 1, 4, 4), (3, 1, 8, 8)])
def test_hints_of_another_size_than_the_images_are_refused(fresh, shape):
    with pytest.raises(ValueError):
        fresh(*inputs(), hint=torch.zeros(shape))


@pytest.mark.parametrize("value", [-0.01, 1.01, 255, math.nan, math.inf, -math.inf])
def test_conditions_outside_0_and_1_are_refused(fresh, value):
    condition = edges()
    condition[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        fresh(*inputs(), condition)


def test_a_missing_condition_is_refused(fresh):
    with pytest.raises((ValueError, TypeError)):
        fresh(*inputs())


def test_images_that_do_not_fit_are_refused_by_the_control_net_as_by_the_base(fresh):
    x_t, t, label = inputs()
    for bad in [(x_t.repeat(1, 2, 1, 1), t, label), (x_t, t[:1], label), (x_t, t, label[:1])]:
        with pytest.raises(ValueError):
            fresh(*bad, edges())


# The controlled block


class Tokens(nn.Module):
    """A transformer layer on feature maps: each pixel is a token."""

    def __init__(self, channels, dropout=0.0):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(channels, 2, 16, dropout, batch_first=True)

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


EMB = torch.randn(2, 12, generator=torch.Generator().manual_seed(3))
BLOCKS = {
    "residual block": (lambda: ResBlock(16, 16, 12), (EMB,)),
    "attention": (lambda: SelfAttention(16), ()),
    "convolution": (lambda: nn.Conv2d(16, 16, 3, padding=1), ()),
    "transformer layer": (lambda: Tokens(16), ()),
}
any_block = pytest.mark.parametrize("make, args", BLOCKS.values(), ids=BLOCKS.keys())


def x_and_c(condition_channels=16):
    return torch.randn(2, 16, 4, 4), torch.randn(2, condition_channels, 4, 4)


def train_block(controlled, args, steps, x, c):
    optimizer = torch.optim.SGD([p for p in controlled.parameters() if p.requires_grad], 0.05)
    target = torch.randn_like(x)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(controlled(x, c, *args), target).backward()
        optimizer.step()


@any_block
@pytest.mark.parametrize("condition_channels", [16, 3])
def test_at_the_start_a_controlled_block_is_the_block(randomised, make, args, condition_channels):
    block, (x, c) = randomised(make()).eval(), x_and_c(condition_channels)
    with torch.no_grad():
        expected = block(x, *args)
    controlled = ControlledBlock(block, 16, condition_channels)
    for strength in (0, 1, -100):
        with torch.no_grad():
            assert torch.equal(controlled(x, strength * c, *args), expected)
    randomised(controlled)
    assert not torch.allclose(controlled(x, c, *args), expected)


def test_at_the_start_the_copy_sees_what_the_locked_half_sees(base, fresh, randomised):
    x, c = x_and_c(3)
    seen = []
    controlled = ControlledBlock(randomised(SelfAttention(16)), 16, 3)
    controlled.copy.register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    controlled(x, c)
    assert torch.equal(seen[0], x)
    fresh.zero_skips[0].register_forward_pre_hook(lambda zero, args: seen.append(args[0]))
    fresh(*inputs(), edges())
    assert torch.equal(seen[1], base.encoder(*inputs())[0][0])


@any_block
def test_a_trained_controlled_block_follows_equation_2(randomised, make, args):
    """y_c = F(x; Θ) + Z(F(x + Z(c; Θz1); Θc); Θz2)"""
    block, (x, c) = randomised(make()), x_and_c(3)
    original = copy.deepcopy(block)
    controlled = ControlledBlock(block, 16, 3)
    train_block(controlled, args, 3, x, c)
    weight_in, weight_out = controlled.zero_in.weight[:, :, 0, 0], controlled.zero_out.weight[:, :, 0, 0]
    inside = x + torch.einsum("oc,bchw->bohw", weight_in, c) + controlled.zero_in.bias[:, None, None]
    outside = torch.einsum("oc,bchw->bohw", weight_out, controlled.copy(inside, *args))
    expected = original(x, *args) + outside + controlled.zero_out.bias[:, None, None]
    torch.testing.assert_close(controlled(x, c, *args), expected, rtol=1e-4, atol=1e-4)
    assert weight_in.any() and weight_out.any()
    for (name, weight), trained in zip(original.state_dict().items(), controlled.copy.state_dict().values()):
        assert torch.equal(weight, block.state_dict()[name])
        assert not torch.equal(weight, trained)
    assert all(p.grad is None and not p.requires_grad for p in block.parameters())


@any_block
def test_the_copy_starts_from_the_trained_weights_in_memory_of_its_own(randomised, make, args):
    block = freeze(randomised(make()))
    controlled = ControlledBlock(block, 16)
    assert controlled.locked is block and storages(controlled.copy).isdisjoint(storages(block))
    for name, weight in block.state_dict().items():
        assert torch.equal(weight, controlled.copy.state_dict()[name])
    assert all(p.requires_grad for p in controlled.copy.parameters())


@any_block
def test_in_a_controlled_block_the_output_wakes_first_then_the_rest(randomised, make, args):
    x, c = x_and_c()
    controlled = ControlledBlock(randomised(make()), 16)
    optimizer = torch.optim.SGD([p for p in controlled.parameters() if p.requires_grad], 0.05)
    for expected in [{"zero_out"}, {"zero_out", "copy", "zero_in"}]:
        optimizer.zero_grad()
        controlled(x, c, *args).square().mean().backward()
        assert {name.split(".")[0] for name, p in controlled.named_parameters()
                if p.grad is not None and p.grad.any()} == expected
        optimizer.step()


def test_the_locked_half_never_drops_anything(randomised):
    block = randomised(nn.Sequential(nn.Conv2d(16, 16, 1), nn.Dropout(0.5)))
    x, c = x_and_c()
    controlled = ControlledBlock(block, 16)
    expected = block.eval()(x)
    for outer in (controlled, nn.Sequential(controlled)):
        assert outer.train() is outer and controlled.training
        assert not any(module.training for module in controlled.locked.modules())
        assert all(module.training for module in controlled.copy.modules())
        assert torch.equal(controlled(x, c), expected)
        assert outer.eval() is outer and not any(module.training for module in outer.modules())


def test_before_training_starts_the_copy_drops_and_the_locked_half_does_not(randomised):
    controlled = ControlledBlock(randomised(nn.Sequential(nn.Conv2d(16, 16, 1), nn.Dropout(0.5))), 16)
    assert controlled.copy[1].training and not controlled.locked[1].training
