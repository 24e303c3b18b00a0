"""Assignment 3: ControlNet. Each class tests one task. Stand-ins replace your other functions.

Rows of numbers below are samples of right results, for inputs that are the same on every machine.
"""

from unittest.mock import Mock, call

import pytest
import torch
from checking import (
    check,
    check_refused,
    check_tensor,
    close,
    inputs,
    learns,
    small_unet,
    waves,
    with_waves,
)
from torch import nn

from minicnet import controlnet, unet
from minicnet.controlnet import Control

POINTS = pytest.mark.points


def mix(in_channels, out_channels=None):
    """Stand in for zero_conv: return a convolution that mixes channels and is not zero."""
    return with_waves(nn.Conv2d(in_channels, out_channels or in_channels, 1, bias=False), scale=1.0)


def block(scale=0.3):
    """Return a block F(x, emb) that keeps the shape of x (B, 16, H, W)."""
    return with_waves(unet.ResBlock(16, 16, 4), scale)


def small_net():
    """Return something to freeze and to copy; dropout makes its mode matter."""
    return with_waves(nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Dropout(),
                                    nn.Conv2d(4, 2, 1)))


class TestZero:
    """1. zeroed and zero_conv"""

    @POINTS(1)
    def test_zeroed_fills_with_zeros(self):
        layer = with_waves(nn.Linear(3, 2))
        check(unet.zeroed(layer) is layer, "`zeroed` returns the layer that it was given")
        check(not layer.weight.any(), "the weight becomes exactly zero")
        check(not layer.bias.any(), "the bias as well: otherwise the layer would not return zero")

    @POINTS(1)
    def test_zero_conv_returns_zero(self):
        for arguments, shape in {(5,): (5, 5, 1, 1), (5, 3): (3, 5, 1, 1)}.items():
            conv = controlnet.zero_conv(*arguments)
            check(isinstance(conv, nn.Conv2d), "a zero convolution is an ordinary nn.Conv2d")
            check(conv.weight.shape == shape, f"for zero_conv{arguments} the weight should be "
                  f"{shape}, but it is {tuple(conv.weight.shape)}")
            check(conv.bias is not None, "it has a bias as well")
            check(not conv.weight.any() and not conv.bias.any(), "weight and bias start at "
                  "exactly zero, or the base would change from the start")

    @POINTS(1)
    def test_they_can_learn(self):
        for layer in (controlnet.zero_conv(2), unet.zeroed(nn.Conv2d(2, 2, 1))):
            check(learns(layer(waves(1, 2, 3, 3)), layer.weight, layer.bias), "the weights start "
                  "at zero, but they must not stay there: a gradient must arrive in the first step")


class TestFreeze:
    """2. freeze"""

    @POINTS(2)
    def test_nothing_trains(self):
        net = small_net()
        net(waves(1, 2, 5, 5)).sum().backward()
        controlnet.freeze(net)
        check(not any(parameter.requires_grad for parameter in net.parameters()), "some parameter "
              "still requires a gradient, so an optimizer or weight decay could change the base")
        check(all(parameter.grad is None for parameter in net.parameters()), "the gradients of an "
              "earlier step are still stored, or zeros are: what is `grad` before the first step?")

    @POINTS(2)
    def test_it_computes_as_before(self):
        net, x = small_net(), waves(1, 2, 5, 5).requires_grad_()
        check(controlnet.freeze(net) is net, "the module is returned: `unet = freeze(unet)`")
        check(not any(module.training for module in net.modules()),
              "a locked base must not drop out at random: modules have two modes")
        check(learns(net(x), x), "the control learns *through* the locked decoder, so a gradient "
              "must pass through a locked module to its input. Weights need no gradient, but the "
              "graph must be kept, so no_grad is wrong here")


class TestTrainableCopy:
    """3. trainable_copy"""

    @POINTS(2)
    def test_equal_weights_in_its_own_memory(self):
        net = small_net()
        twin = controlnet.trainable_copy(net)
        check(twin is not net, "the module itself was returned: training it would train the base")
        pairs = list(zip(net.parameters(), twin.parameters(), strict=True))
        check(not any(a.data_ptr() == b.data_ptr() for a, b in pairs),
              "copy and original share memory: training one would change the other")
        check(all(torch.equal(a, b) for a, b in pairs), "the copy starts from the *trained* "
              "weights, not from new ones")

    @POINTS(2)
    def test_the_copy_trains_and_the_original_does_not(self):
        net = small_net().eval().requires_grad_(False)
        twin = controlnet.trainable_copy(net)
        check(all(parameter.requires_grad for parameter in twin.parameters()), "a copy of frozen "
              "parameters is frozen, unless something is done about it")
        check(all(module.training for module in twin.modules()), "the copy will be trained: which "
              "mode does it need?")
        check(not any(parameter.requires_grad for parameter in net.parameters())
              and not any(module.training for module in net.modules()),
              "the original has changed: which of the two modules did you modify?")


@pytest.fixture
def made(monkeypatch):
    """Replace your functions of tasks 1 to 3 by stand-ins, and record their calls."""
    made = Mock()
    made.zero_conv.side_effect = mix
    made.freeze.side_effect = lambda module: module
    made.trainable_copy.side_effect = lambda module: (
        block(scale=0.2) if isinstance(module, unet.ResBlock) else small_unet(blocks=2).encoder)
    for name in ("zero_conv", "freeze", "trainable_copy"):
        monkeypatch.setattr(controlnet, name, getattr(made, name))
    monkeypatch.setattr(unet, "zeroed", lambda layer: layer)
    return made


class TestControlledBlock:
    """4. ControlledBlock"""

    def make(self):
        """Return a controlled block, whose copy differs from the block, and its arguments."""
        x, c, emb = waves(2, 16, 3, 3), waves(2, 16, 3, 3, phase=1), waves(2, 4)
        return controlnet.ControlledBlock(block(), 16), x.requires_grad_(), c, emb

    @POINTS(2)
    def test_its_four_parts(self, made):
        given = block()
        net = controlnet.ControlledBlock(given, 16, 3)
        check(all(hasattr(net, name) for name in ("locked", "copy", "zero_in", "zero_out")),
              "the four parts of Eq. 2 are called locked, copy, zero_in and zero_out")
        check(net.locked is given, "the given block itself becomes the locked half")
        check(made.freeze.mock_calls == [call(given)], "`freeze` locks the given block, and "
              "nothing else")
        check(made.trainable_copy.mock_calls == [call(given)] and net.copy is not given,
              "`trainable_copy` makes the copy of the given block")
        check(made.zero_conv.call_count == 2 and net.zero_in is not net.zero_out,
              "`zero_conv` makes zero_in and zero_out")
        check(net.zero_in.weight.shape == (16, 3, 1, 1), "the condition has 3 channels here, and "
              "x has 16: which of the two zero convolutions brings one to the other?")
        check(net.zero_out.weight.shape == (16, 16, 1, 1), "zero_out keeps the number of "
              "channels")
        same = controlnet.ControlledBlock(given, 16)
        check(same.zero_in.weight.shape == (16, 16, 1, 1), "c has as many channels as x unless "
              "given")

    @POINTS(2)
    def test_its_formula(self, made):
        net, x, c, emb = self.make()
        y = net(x, c, emb)
        check(not close(y, net(x, 0 * c, emb)), "the condition makes no difference")
        check(not close(y, net(x, c, 2 * emb)), "F may take more than x, such as the embedding: "
              "both halves get all further arguments")
        check_tensor(y, (2, 16, 3, 3), [-1.3917, -0.02825, -1.6299, -2.4438, -2.6767, -3.2757],
                     "The result differs from Eq. 2. What does the copy read: x, c, or both? Which "
                     "half goes through zero_out?")
        check(learns(y, net.copy, net.zero_in, net.zero_out), "a gradient must reach the copy and "
              "both zero convolutions: what cuts the graph?")

    @POINTS(2)
    def test_at_the_start_it_is_the_base(self, made):
        net, x, c, emb = self.make()
        with_waves(net.zero_in, scale=0.0)
        with_waves(net.zero_out, scale=0.0)
        y = net(x, c, emb)
        check(torch.equal(y, net.locked(x, emb)), "while both zero convolutions return zero, y_c "
              "is F(x; Θ) to the last bit")
        check(learns(y, x), "a gradient must pass through the locked half to whatever comes before "
              "it")


class TestConditionEncoder:
    """5. ConditionEncoder"""

    @POINTS(2)
    def test_its_layers(self, made):
        encoder = controlnet.ConditionEncoder(3, 8, 4)
        weights = [tuple(parameter.shape) for parameter in encoder.parameters()]
        check(len(encoder) == 8, "there are eight layers: see the list in the handout")
        check(weights == [(4, 48, 3, 3), (4,), (4, 4, 3, 3), (4,), (8, 4, 3, 3), (8,),
                          (8, 8, 1, 1)],
              f"the parameters have other shapes than the list asks for: {weights}")
        check_tensor(with_waves(encoder, scale=1.0)(waves(2, 3, 8, 12)), (2, 8, 2, 3),
                     [-12.705, 0.38183, 21.059, 4.8937, 12.852, -7.3252],
                     "The result has the size of the first feature map: which padding keeps the "
                     "size of a 3x3 convolution? If the size is right, the layers are in another "
                     "order, or something follows the zero convolution")

    @POINTS(2)
    def test_it_starts_silent_and_can_learn(self, made):
        encoder = controlnet.ConditionEncoder(1, 8, 2)
        check(made.zero_conv.called, "at the start the copy must read exactly x, whatever the "
              "condition: which layer of yours guarantees this?")
        check(made.zero_conv.call_count == 1 and getattr(encoder[-1], "bias", 0) is None,
              "exactly one layer starts at zero, and it is the last one")
        with_waves(encoder[-1], scale=0.0)
        found = encoder(waves(2, 1, 8, 8))
        check(not found.any(), "while the zero convolution returns zero, so does the encoder")
        check(learns(found, encoder[-1]), "the zero convolution must learn in the first step: is "
              "its input zero?")


class TestZeroConvs:
    """6. ZeroConvs.forward"""

    @POINTS(3)
    def test_each_output_has_its_own(self, made):
        convs = controlnet.ZeroConvs([4, 4, 4])
        for i, conv in enumerate((*convs.skips, convs.middle)):
            conv.weight.data = (i + 2) * torch.eye(4).view(4, 4, 1, 1)
        maps = [waves(2, 4, 3, 3, phase=phase) for phase in range(4)]
        control = convs(maps[:3], maps[3])
        check(isinstance(control, Control), "a Control is returned: residuals for the skips and "
              "one for the middle")
        check(len(control.skips) == 3, "every skip gets a residual")
        for i, residual in enumerate((*control.skips, control.middle)):
            check(not close(residual, maps[i]),
                  "a residual is what a zero convolution returns, not the feature map itself")
            check(close(residual, (i + 2) * maps[i]), "skip i passes once through the zero "
                  "convolution i, and the middle through its own")
            check(residual.requires_grad, "no gradient reaches a zero convolution")


class TestControlNet:
    """7. ControlNet.forward"""

    @pytest.fixture
    def net(self, made, monkeypatch):
        """Return a ControlNet whose zero convolutions return their inputs."""
        encoder = with_waves(nn.Conv2d(1, 16, 1))
        encoder.condition_channels = 1
        monkeypatch.setattr(controlnet, "ConditionEncoder", lambda *_: encoder)
        net = controlnet.ControlNet(small_unet(blocks=2))
        net.zero_convs.forward = Control
        return net

    def maps(self, net, hint):
        """Return what the zero convolutions are given."""
        control = net(*inputs(4), hint=hint)
        check(isinstance(control, Control), "return what `self.zero_convs` returns")
        check(len(control.skips) == 3, "`self.zero_convs` takes the list of skips and the middle")
        return torch.stack([*control.skips, control.middle])

    @POINTS(2)
    def test_without_a_hint_the_copy_is_the_encoder(self, net):
        skips, middle, _, _ = small_unet(blocks=2).encoder(*inputs(4))
        check(torch.equal(self.maps(net, torch.zeros(2, 16, 4, 4)), torch.stack([*skips, middle])),
              "a fresh copy that gets x_t, t, prompt and a hint of zero computes what the base's "
              "encoder computes: which of these does it miss?")

    @POINTS(2)
    def test_where_the_hint_enters(self, net):
        hint = waves(16, 1, 1, phase=3).expand(2, 16, 4, 4)
        found, without = self.maps(net, hint), self.maps(net, 0 * hint)
        check(not close(found[3], without[3]), "the hint makes no difference to the middle")
        check(close(found[0] - without[0], hint), "the hint is added once to the output of the "
              "first convolution, so the first skip holds it")
        net.encoder.conv_in.bias.data += hint[0, :, 0, 0]  # the same effect, at the right place
        check(close(found, self.maps(net, 0 * hint)), "the copy continues from the first "
              "convolution plus the hint, and meets the hint nowhere else")

    @POINTS(2)
    def test_what_learns(self, net):
        control = net(*inputs(4), (waves(2, 1, 4, 4) + 1) / 2)
        parts = [net.condition_encoder, net.encoder.conv_in, net.encoder.time, net.encoder.summary,
                 net.encoder.text, net.encoder.stages, net.encoder.middle]
        check(learns(torch.stack([*control.skips, control.middle]), *parts), "a gradient must "
              "reach the whole copy, embeddings and text encoder included, and the condition "
              "encoder: is something detached?")
        found = [sum(p.grad.norm() ** 2 for p in part.parameters()) ** 0.5 for part in parts]
        check(close(torch.stack(found), [7.7451, 33.032, 2.0994, 3.9465, 0.78551, 22.433, 24.585],
                    1e-3), "the gradients differ: is a part of the embedding or of the words "
              "detached?")


def decoded(control=None):
    """Return what the decoder gets, (4, B, C, H, W): three skips and the middle."""
    net = small_unet(blocks=2)
    net.decoder.forward = Mock(return_value=torch.zeros(2, 1, 4, 4))
    net(*inputs(4), control=control)
    skips, middle, *_ = net.decoder.forward.call_args.args
    check(len(skips) == 3, "the decoder gets as many skips as the encoder returned")
    return torch.stack([*skips, middle])


class TestResiduals:
    """8. adding residuals in UNet.forward"""

    @POINTS(2)
    def test_each_map_gets_its_residual(self, made):
        full = [torch.full((2, 16, 4, 4), value) for value in (1.0, 2.0, 4.0, 8.0)]
        found = (decoded(Control(full[:3], full[3])) - decoded()).mean((1, 2, 3, 4))
        check(found[:3].any(), "the residuals of the skips do not arrive at the decoder")
        check(not close(found[:3], [4, 2, 1]), "residual i belongs to skip i: which one comes "
              "first?")
        check(close(found, [1, 2, 4, 8]), "each residual is added once to its skip, or to the "
              "middle, without a weight")

    @POINTS(2)
    def test_the_base_is_not_disturbed(self, made):
        zeros = torch.zeros(2, 16, 4, 4)
        found = decoded(Control([zeros + 1, zeros, zeros], zeros)) - decoded()
        check(not found[1:].any(), "what is added to the first skip changes a later one: residuals "
              "go to the decoder, not into the encoder")
        net = small_unet(blocks=2).eval().requires_grad_(False)
        residuals = [torch.zeros(2, 16, 4, 4, requires_grad=True) for _ in range(4)]
        y = net(*inputs(4), control=Control(residuals[:3], residuals[3]))
        check(torch.equal(y, net(*inputs(4))), "residuals of zero must not change a bit")
        check(learns(y, *residuals), "a gradient must reach every residual: is one of them "
              "detached, or is something under no_grad?")


class TestSum:
    """9. summing and scaling conditions"""

    def control(self, value):
        return Control([torch.full((1, 2, 2, 2), value), torch.full((1, 4, 1, 1), 10 * value)],
                       torch.full((1, 4, 1, 1), 100 * value))

    def numbers(self, control):
        check(isinstance(control, Control), "the result is a Control, to be added or scaled again")
        return [x.mean().item() for x in (*control.skips, control.middle)]

    @POINTS(2)
    def test_sums(self):
        a, b = self.control(1.0), self.control(2.0)
        found = self.numbers(a + b)
        check(found != [1.5, 15, 150], "conditions are summed, not averaged (section 3.4)")
        check(found == [3, 30, 300], "skips are added one by one, and so are the middles: what "
              "does + do to two lists?")
        check(self.numbers(a) == [1, 10, 100] and self.numbers(b) == [2, 20, 200],
              "a + b must change neither a nor b")
        check(self.numbers(sum([a, b, self.control(4.0)])) == [7, 70, 700],
              "sum(list) starts from the number 0: what is a control plus 0?")

    @POINTS(2)
    def test_strengths(self):
        whole = self.control(4.0)
        for scaled in (0.5 * whole, whole * 0.5):
            check(self.numbers(scaled) == [2, 20, 200], "the strength multiplies every skip and "
                  "the middle")
        check(self.numbers(whole) == [4, 40, 400], "scaling must not change the control itself")
        check(self.numbers(0 * whole) == [0, 0, 0], "strength 0 is the base alone: is 0 a number "
              "like any other in your code?")


class TestMisfits:
    """10. controls that do not fit"""

    @POINTS(1)
    def test_another_number_of_skips_is_an_error(self, made, monkeypatch):
        monkeypatch.setattr(unet.Decoder, "forward", lambda *_: torch.zeros(2, 1, 4, 4))
        maps = [waves(2, 16, 4, 4)] * 4
        long, short = Control(maps[:3], maps[3]), Control(maps[:2], maps[3])
        for case, function, *arguments in (
                ("a + b", lambda a, b: a + b, long, short),
                ("ZeroConvs.forward", controlnet.ZeroConvs([16] * 3), maps[:2], maps[3]),
                ("UNet.forward", small_unet(blocks=2), *inputs(4), short)):
            check_refused(f"{case}: with two residuals for three skips, the third is ignored "
                          "without a word: which option of `zip` refuses that?", function,
                          *arguments, errors=Exception)  # whichever it is, it is noticed

    @POINTS(1)
    def test_another_dtype_is_converted(self, made):
        maps = [waves(2, 16, 4, 4).double()] * 4
        check(decoded(Control(maps[:3], maps[3])).dtype == torch.float32, "the decoder must get "
              "skips and a middle of the base's dtype, whatever dtype the residuals have")
