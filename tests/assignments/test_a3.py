"""Assignment 3: ControlNet. Each class is a task; each test looks at one idea in it, and at no other task."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from checking import check, close, waves, with_waves
from torch import nn

POINTS = pytest.mark.points
CONTROLLED, MORE = [0.53674, 1.89553, -0.37814], 1.0261  # some numbers of right results


@pytest.fixture
def given(monkeypatch):
    """minicnet.controlnet with stand-ins for the functions of tasks 1 to 3, so that tasks 4 to 6 need none of yours."""
    from minicnet import controlnet

    def zero_conv(in_channels, out_channels=None):
        conv = nn.Conv2d(in_channels, out_channels or in_channels, 1)
        conv.load_state_dict({name: 0 * value for name, value in conv.state_dict().items()})
        return conv

    def freeze(module):
        for parameter in module.parameters():
            parameter.requires_grad, parameter.grad = False, None
        return module.train(False)

    def trainable_copy(module):
        twin = pickle.loads(pickle.dumps(module)).train()
        for parameter in twin.parameters():
            parameter.requires_grad = True
        return twin

    for stand_in in (zero_conv, freeze, trainable_copy):
        monkeypatch.setattr(controlnet, stand_in.__name__, stand_in)
    return controlnet


def small_net():
    """Something to freeze and to copy, with numbers for weights and, as dropout, a reason for eval mode."""
    return with_waves(nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Dropout(), nn.Conv2d(4, 2, 1)))


def has_gradient(module):
    return any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


class TestZeroConv:
    """1. zero_conv"""

    @POINTS(1)
    def test_it_is_a_1x1_convolution(self):
        from minicnet.controlnet import zero_conv
        for arguments, shape in {(5,): (5, 5, 1, 1), (5, 3): (3, 5, 1, 1)}.items():
            conv = zero_conv(*arguments)
            check(isinstance(conv, nn.Conv2d), "a zero convolution is an ordinary nn.Conv2d")
            check(conv.weight.shape[2:] == (1, 1), "each pixel is for itself: how large is the kernel?")
            check(conv.weight.shape == shape, "out_channels is in_channels unless given")

    @POINTS(1)
    def test_it_starts_at_zero(self):
        from minicnet.controlnet import zero_conv
        conv = zero_conv(3)
        check(not conv.weight.any(), "its weight starts at exactly zero, not only near it")
        check(conv.bias is not None, "it has a bias, too")
        check(not conv.bias.any(), "with a bias that is not zero, the base would be changed from the start")

    @POINTS(1)
    def test_it_learns(self):
        from minicnet.controlnet import zero_conv
        conv = zero_conv(2)
        check(all(parameter.requires_grad for parameter in conv.parameters()), "it starts at zero, but must not stay")
        conv(waves(1, 2, 3, 3)).sum().backward()
        check(conv.weight.grad is not None and conv.weight.grad.any(),
              "for y = W x + b, dy/dW is x: gradient must come")


class TestFreeze:
    """2. freeze"""

    @POINTS(1)
    def test_no_parameter_trains(self):
        from minicnet.controlnet import freeze
        net = small_net()
        freeze(net)
        check(not any(parameter.requires_grad for parameter in net.parameters()), "some parameter still asks for a "
              "gradient: an optimizer or weight decay could change the base")

    @POINTS(1)
    def test_it_behaves_as_when_drawing(self):
        from minicnet.controlnet import freeze
        net = small_net()
        freeze(net)
        check(not any(module.training for module in net.modules()),
              "a locked base must not drop out at random: modules have two modes")

    @POINTS(1)
    def test_old_gradients_are_forgotten(self):
        from minicnet.controlnet import freeze
        net = small_net()
        net(waves(1, 2, 5, 5)).sum().backward()
        freeze(net)
        check(not has_gradient(net), "gradients of an earlier step are still stored in the parameters")
        check(all(parameter.grad is None for parameter in net.parameters()), "no parameter keeps a gradient, not even "
              "one of zeros: what is `grad` before the first step?")

    @POINTS(1)
    def test_gradient_still_flows_through(self):
        from minicnet.controlnet import freeze
        net, x = small_net(), waves(1, 2, 5, 5).requires_grad_()
        check(freeze(net) is net, "the module itself is returned, so that `unet = freeze(unet)` works")
        y = net(x)
        check(y.requires_grad, "the control learns *through* the locked decoder: weights need no gradient, but the "
                               "graph must be kept, so no no_grad")
        y.sum().backward()
        check(x.grad.any(), "gradient must pass through a locked module to its input")


class TestTrainableCopy:
    """3. trainable_copy"""

    @POINTS(2)
    def test_it_is_the_same_and_not_the_same(self):
        from minicnet.controlnet import trainable_copy
        net = small_net()
        twin = trainable_copy(net)
        check(twin is not net, "what is returned is the module itself: training it would train the base")
        pairs = list(zip(net.parameters(), twin.parameters(), strict=True))
        check(not any(a.data_ptr() == b.data_ptr() for a, b in pairs), "copy and original share memory: training one "
                                                                       "would change the other")
        check(all(torch.equal(a, b) for a, b in pairs), "the copy starts from the *trained* weights, not from new ones")

    @POINTS(1)
    def test_it_trains_even_if_the_original_is_frozen(self):
        from minicnet.controlnet import trainable_copy
        twin = trainable_copy(small_net().eval().requires_grad_(False))
        check(all(parameter.requires_grad for parameter in twin.parameters()), "a copy of frozen parameters is frozen, "
              "unless something is done about it")
        check(all(module.training for module in twin.modules()), "the copy is about to be trained: which mode?")

    @POINTS(1)
    def test_the_original_stays_as_it_is(self):
        from minicnet.controlnet import trainable_copy
        net = small_net().eval().requires_grad_(False)
        trainable_copy(net)
        check(not any(parameter.requires_grad for parameter in net.parameters()), "the original was thawed: which of "
                                                                                  "the two did you change?")
        check(not any(module.training for module in net.modules()), "the original has changed its mode")


class Wavy(nn.Module):
    """A block F(x, more) to be controlled."""

    def __init__(self, channels):
        super().__init__()
        self.conv = with_waves(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x, more=0.0):
        return torch.tanh(self.conv(x)) + more


class TestControlledBlock:
    """4. ControlledBlock"""

    def make(self, given, condition_channels=None):
        """block, controlled block, x, c"""
        block = Wavy(4)
        return (block, given.ControlledBlock(block, 4, condition_channels), waves(2, 4, 3, 3),
                waves(2, condition_channels or 4, 3, 3, phase=1))

    def awake(self, given):
        """Such a block after long training: its zero convolutions are no longer zero."""
        block, controlled, x, c = self.make(given)
        with_waves(controlled.zero_in)
        with_waves(controlled.zero_out, scale=0.5)
        return block, controlled, x, c

    @POINTS(2)
    def test_at_the_start_it_is_the_base(self, given):
        block, controlled, x, c = self.make(given)
        y = copy.deepcopy(block)(x)
        check(torch.equal(controlled(x, c), y), "before training, y_c is F(x) to the last bit: what does a zero "
                                                "convolution give, and what is it added to?")
        check(torch.equal(controlled(x, 100 * c), y), "nor may any condition change that")

    @POINTS(2)
    def test_its_formula(self, given):
        _, controlled, x, c = self.awake(given)
        names = [name for name, _ in controlled.named_children()]
        check({"locked", "copy", "zero_in", "zero_out"} <= set(names),
              "the four parts of Eq. 2 are called locked, copy, zero_in and zero_out")
        found = controlled(x, c)
        check(not close(found, controlled(x, 0 * c)), "the condition makes no difference, even after training")
        check(close(found[[0, 0, 1], [0, 1, 3], [0, 1, 2], [1, 0, 2]], CONTROLLED),
              "the result differs from Eq. 2. What does the copy see: x, c, or both? What goes through Θz1, and what "
              "through Θz2?")

    @POINTS(2)
    def test_what_learns_and_what_does_not(self, given):
        block, controlled, x, c = self.make(given)
        check(all(parameter.requires_grad for parameter in controlled.copy.parameters()), "the copy must be trainable")
        x.requires_grad_()
        controlled(x, c).square().sum().backward()
        check(has_gradient(controlled.zero_out), "in the first step the last zero convolution learns: its input is not "
                                                 "zero")
        check(x.grad is not None and x.grad.any(), "gradient must pass through the locked half to what comes before it")
        with_waves(controlled.zero_out)
        controlled(x, c).square().sum().backward()
        check(has_gradient(controlled.copy) and has_gradient(controlled.zero_in), "once Θz2 is not zero, gradient must "
              "reach the copy and Θz1: does anything cut the graph?")
        check(not any(parameter.requires_grad for parameter in block.parameters()), "the block given is F(.; Θ): it "
                                                                                    "becomes the locked half")
        check(not has_gradient(controlled.locked), "the locked half collects gradients")
        shared = [a.data_ptr() == b.data_ptr() for a, b in zip(controlled.copy.parameters(), block.parameters())]
        check(not any(shared), "the copy shares its memory with the base")

    @POINTS(2)
    def test_other_channels_and_more_arguments(self, given):
        block, controlled, x, c = self.make(given, condition_channels=1)
        check(controlled(x, c).shape == x.shape, "a condition may have another number of channels than x: which of the "
                                                 "zero convolutions brings it to x's?")
        _, controlled, x, c = self.awake(given)
        more = controlled(x, c, 1.0) - controlled(x, c)
        check(not close(more, torch.ones_like(x)),
              "F may take more than x, such as the time embedding: both halves are given it")
        check(close(more.mean(), MORE), "further arguments must reach both halves, unchanged")


class TestConditionEncoder:
    """5. the last layer of ConditionEncoder"""

    @POINTS(2)
    def test_it_starts_silent(self, given):
        for patch, size in {1: (8, 12), 2: (4, 6), 4: (2, 3)}.items():
            found = given.ConditionEncoder(3, 8, patch)(waves(2, 3, 8, 12))
            check(found.shape == (2, 8, *size),
                  "the condition must come out at the size of the first feature map, with its number of channels")
            check(not found.any(), "at the start the copy must see exactly x: what does Z(c; Θz1) give then?")

    @POINTS(2)
    def test_it_can_learn(self, given):
        encoder = given.ConditionEncoder(1, 8, 2)
        *before, last = encoder
        check(isinstance(last, nn.Conv2d) and len(before) == 7,
              "one layer follows the three convolutions and SiLUs, and nothing follows it")
        check(last.kernel_size == (1, 1), "a zero convolution looks at one pixel: how large is its kernel?")
        encoder(waves(2, 1, 8, 8)).sum().backward()
        check(has_gradient(last), "the last layer must learn in the first step: is its input zero, or is it locked?")
        check(last.weight.grad.any(), "two zero convolutions in series never wake: is the layer before it zero, too?")
        with_waves(last)
        check(encoder(waves(2, 1, 8, 8)).min() < 0, "what is added to the feature map may be negative: does something "
                                                    "follow the last convolution?")


def small_unet():
    """Three skips and a middle of the same shape: residuals that are mixed up do not raise."""
    from minicnet.unet import UNet
    return with_waves(UNet(channels=8, multipliers=(1,), blocks=2, patch=1), scale=0.2)


def inputs():
    """x_t, t, prompt"""
    from minicnet.words import tokenize
    return waves(2, 1, 4, 4), torch.tensor([5, 700]), tokenize(["a three", "seven"])


class TestControlNet:
    """6. ControlNet.forward"""

    @pytest.fixture
    def net(self, given, monkeypatch):
        """A ControlNet; its condition encoder is one convolution, not yours."""

        class Given(nn.Sequential):
            def __init__(self, condition_channels, channels, patch):
                super().__init__(with_waves(nn.Conv2d(condition_channels, channels, 1)))
                self.condition_channels = condition_channels

        monkeypatch.setattr(given, "ConditionEncoder", Given)
        return given.ControlNet(small_unet())

    def zeros_become(self, net, weight):
        """Makes every zero convolution pass its input on, times `weight`."""
        for conv in (*net.zero_skips, net.zero_middle):
            nn.init.dirac_(conv.weight).data.mul_(weight)

    @POINTS(1)
    def test_at_the_start_it_says_nothing(self, net):
        control = net(*inputs(), torch.rand(2, 1, 4, 4))
        check(type(control).__name__ == "Control", "a Control is returned: residuals for the skips and for the middle")
        check(len(control.skips) == 3, "every skip gets a residual, that of the first convolution, too")
        check(not any(residual.any() for residual in (*control.skips, control.middle)), "before training all residuals "
              "are zero: does each pass through a zero convolution?")

    @POINTS(2)
    def test_each_residual_has_its_own_zero_convolution(self, net):
        for i, conv in enumerate((*net.zero_skips, net.zero_middle)):
            nn.init.constant_(conv.bias, i + 1.0)
        control = net(*inputs(), torch.rand(2, 1, 4, 4))
        found = [residual.mean().item() for residual in (*control.skips, control.middle)]
        check(found == [1, 2, 3, 4], "skip i must pass once through zero convolution i, and the middle through its own")

    @POINTS(1)
    def test_without_a_condition_the_copy_is_the_base_s_encoder(self, net):
        self.zeros_become(net, 1)
        skips, middle, _, _ = small_unet().encoder(*inputs())
        control = net(*inputs(), hint=torch.zeros(2, 8, 4, 4))
        same = [torch.equal(a, b) for a, b in zip((*control.skips, control.middle), (*skips, middle), strict=True)]
        check(all(same), "a fresh copy that is given x_t, t and prompt, and a hint of zero, must see what the base's "
                         "encoder sees: which of these does it get?")

    @POINTS(3)
    def test_where_the_condition_enters(self, net):
        self.zeros_become(net, 1)
        hint = waves(2, 8, 4, 4, phase=3)
        without, control = net(*inputs(), hint=0 * hint), net(*inputs(), hint=hint)
        check(not torch.equal(control.middle, without.middle), "the condition makes no difference to the middle")
        check(close(control.skips[0] - without.skips[0], hint),
              "the hint is added to what the first convolution gives, so that the first skip has it already, once: "
              "Fig. 3")
        constant = waves(8, phase=3)
        control = net(*inputs(), hint=constant.view(1, 8, 1, 1).expand(2, 8, 4, 4))
        net.encoder.conv_in.bias.data += constant
        expected = net(*inputs(), hint=0 * hint)
        same = [close(a, b) for a, b in zip((*control.skips, control.middle), (*expected.skips, expected.middle))]
        check(all(same), "the copy must go on from first convolution plus hint, and meet the hint nowhere else")

    @POINTS(1)
    def test_what_learns(self, net):
        control = net(*inputs(), torch.rand(2, 1, 4, 4))
        check(control.middle.requires_grad, "no gradient reaches the control: is it under no_grad, or detached?")
        self.zeros_become(net, 0.5)
        control = net(*inputs(), torch.rand(2, 1, 4, 4))
        sum(residual.square().sum() for residual in (*control.skips, control.middle)).backward()
        check(all(has_gradient(part) for part in (net.encoder.conv_in, net.encoder.middle, net.condition_encoder,
                                                  *net.zero_skips, net.zero_middle)),
              "once the zero convolutions are not zero, gradient must reach the whole copy and the condition encoder")


class TestResiduals:
    """7. adding residuals in UNet.forward"""

    def decoded(self, skips, middle):
        """What the decoder is given for these residuals, less what it is given without them."""
        unet, seen = small_unet(), []

        def decoder(skips, middle, emb, words):
            seen.append([*skips, middle])
            return torch.zeros(2, 1, 4, 4)

        unet.decoder.forward = decoder
        unet(*inputs())
        unet(*inputs(), control=SimpleNamespace(skips=skips, middle=middle))
        check(len(seen[1]) == 4, "the decoder still takes as many skips as the encoder left")
        return [after - before for before, after in zip(*seen)]

    @POINTS(2)
    def test_each_skip_gets_its_residual(self):
        residuals = [torch.full((2, 8, 4, 4), value) for value in (1.0, 2.0, 4.0)]
        found = [difference.mean().item() for difference in self.decoded(residuals, torch.zeros(2, 8, 4, 4))[:3]]
        check(any(found), "the residuals of the skips do not arrive at the decoder")
        check(torch.tensor(found).round().tolist() != [4, 2, 1], "residual i belongs to skip i: which one is first?")
        check(torch.allclose(torch.tensor(found), torch.tensor([1.0, 2.0, 4.0]), atol=1e-4),
              "each residual is added to its skip, whole and unweighted")

    @POINTS(1)
    def test_the_middle_gets_its_residual(self):
        zeros = torch.zeros(2, 8, 4, 4)
        *skips, middle = self.decoded([zeros] * 3, zeros + 8)
        check(close(middle, zeros + 8), "the residual of the middle is added to the middle")
        check(not any(skip.any() for skip in skips), "the residual of the middle is no business of the skips")

    @POINTS(1)
    def test_the_encoder_does_not_notice(self):
        zeros = torch.zeros(2, 8, 4, 4)
        found = self.decoded([zeros + 1, zeros, zeros], zeros)
        check(not any(difference.any() for difference in found[1:]), "what is added to the first skip changes a later "
              "one: residuals go to the decoder only, never into the running encoder")

    @POINTS(1)
    def test_the_control_learns_through_a_frozen_base(self):
        unet = small_unet().eval().requires_grad_(False)
        residuals = [torch.zeros(2, 8, 4, 4, requires_grad=True) for _ in range(4)]
        plain = unet(*inputs())
        y = unet(*inputs(), control=SimpleNamespace(skips=residuals[:3], middle=residuals[3]))
        check(torch.equal(y, plain), "residuals of zero must change no bit")
        check(y.requires_grad, "no gradient reaches the control: is the base, or its decoder, under no_grad?")
        y.square().sum().backward()
        check(all(residual.grad is not None and residual.grad.any() for residual in residuals), "gradient must reach "
              "every residual: is one of them detached?")


class TestSum:
    """8. summing and scaling conditions"""

    def control(self, value):
        from minicnet.controlnet import Control
        skips = [torch.full((1, 2, 2, 2), value), torch.full((1, 4, 1, 1), 10 * value)]
        return Control(skips, torch.tensor(100 * value))

    def numbers(self, control):
        check(type(control).__name__ == "Control",
              "the result is a Control again, so that it can be added and scaled on")
        return [skip.mean().item() for skip in control.skips] + [control.middle.mean().item()]

    @POINTS(2)
    def test_a_sum(self):
        a, b = self.control(1.0), self.control(2.0)
        found = self.numbers(a + b)
        check(found != [1.5, 15, 150], "conditions are summed, not averaged: section 3.4 needs no weighting")
        check(len(found) == 3, "a sum has as many skips as each of its parts: what does + do to two lists?")
        check(found == [3, 30, 300], "skips are added one by one, and so are the middles")
        check(self.numbers(a) == [1, 10, 100] and self.numbers(b) == [2, 20, 200], "a + b must change neither a nor b")

    @POINTS(1)
    def test_the_sum_of_a_list(self):
        parts = [self.control(1.0), self.control(2.0), self.control(4.0)]
        check(self.numbers(sum(parts)) == [7, 70, 700], "sum(list) starts from the number 0: what is a control plus 0?")

    @POINTS(1)
    def test_strength(self):
        for scaled in (0.5 * self.control(4.0), self.control(4.0) * 0.5):
            check(self.numbers(scaled) == [2, 20, 200], "the strength applies to every skip and to the middle")
        whole = self.control(4.0)
        check(self.numbers(0.5 * whole) != self.numbers(whole) == [4, 40, 400],
              "a strength must not change the control that it is given")
        check(self.numbers(0 * self.control(4.0)) == [0, 0, 0],
              "strength 0 is the base alone: is 0 a number like others in your code?")
