"""Assignment 3: ControlNet. Each class tests one task. Stand-ins replace your other functions."""

import pytest
import torch
from checking import check, close, samples, waves, with_waves
from torch import nn

from minicnet import controlnet, unet
from minicnet.controlnet import Control
from minicnet.words import tokenize

POINTS = pytest.mark.points
# Numbers of right results, for inputs that are the same on every machine.
CONTROLLED = [2.15971, 0.08474, -0.34762, 1.72819, -0.4848, 1.68067]
ENCODED = [5.99883, -5.84358, -4.55171, 0.94874, 7.18157, -3.57217]
GRADIENTS = [317.15, 599.28, 43.534, 58.577, 289.15, 2239.3, 727.91]


class Mix(nn.Module):
    """Stands in for a zero convolution: it mixes channels, and its weight is not zero."""

    def __init__(self, in_channels, out_channels=None):
        super().__init__()
        self.channels = in_channels, out_channels or in_channels
        self.weight = nn.Parameter(waves(*self.channels, phase=1))

    def forward(self, x):
        return torch.einsum("bihw,io->bohw", x, self.weight)


class Wavy(nn.Module):
    """A block F(x, more) that keeps the shape of x."""

    def __init__(self, phase=0.0):
        super().__init__()
        self.weight = nn.Parameter(waves(1, 4, 1, 1, phase=phase) + 1)

    def forward(self, x, more=0.0):
        return torch.tanh(self.weight * x) + more


def small_net():
    """Return something to freeze and to copy; dropout makes its mode matter."""
    return with_waves(nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Dropout(),
                                    nn.Conv2d(4, 2, 1)))


def has_gradient(module):
    return any(parameter.grad is not None and parameter.grad.any()
               for parameter in module.parameters())


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
        conv = controlnet.zero_conv(2)
        for layer in (conv, unet.zeroed(nn.Conv2d(2, 2, 1))):
            check(all(parameter.requires_grad for parameter in layer.parameters()),
                  "the weights start at zero, but they must not stay there")
            layer(waves(1, 2, 3, 3)).sum().backward()
            check(has_gradient(layer), "no gradient arrives in the first step")


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
        y = net(x)
        check(y.requires_grad, "the control learns *through* the locked decoder. Weights need no "
              "gradient, but the graph must be kept, so no_grad is wrong here")
        y.sum().backward()
        check(x.grad.any(), "a gradient must pass through a locked module to its input")


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
    """Replace your functions of tasks 1 to 3 by stand-ins, and record what they were given."""
    made = {"frozen": [], "copied": []}

    def freeze(module):
        made["frozen"].append(module)
        return module

    def trainable_copy(module):
        made["copied"].append(module)
        return Wavy(phase=2.0) if isinstance(module, Wavy) else small_unet().encoder

    for name, stand_in in {"zero_conv": Mix, "freeze": freeze,
                           "trainable_copy": trainable_copy}.items():
        monkeypatch.setattr(controlnet, name, stand_in)
    monkeypatch.setattr(unet, "zeroed", lambda layer: layer)
    return made


class TestControlledBlock:
    """4. ControlledBlock"""

    def make(self):
        """Return a controlled block, x, and c. The copy computes something else than the block."""
        return controlnet.ControlledBlock(Wavy(), 4), waves(2, 4, 3, 3), waves(2, 4, 3, 3, phase=1)

    @POINTS(2)
    def test_its_four_parts(self, made):
        block = Wavy()
        net = controlnet.ControlledBlock(block, 4, 3)
        check(all(hasattr(net, name) for name in ("locked", "copy", "zero_in", "zero_out")),
              "the four parts of Eq. 2 are called locked, copy, zero_in and zero_out")
        check(net.locked is block, "the given block itself becomes the locked half")
        check(made["frozen"] == [block], "`freeze` locks the given block, and nothing else")
        check(made["copied"] == [block] and getattr(net.copy, "weight", 0) is not block.weight,
              "`trainable_copy` makes the copy of the given block")
        check(isinstance(net.zero_in, Mix) and isinstance(net.zero_out, Mix)
              and net.zero_in is not net.zero_out, "`zero_conv` makes zero_in and zero_out")
        check(net.zero_in.channels == (3, 4), "the condition has 3 channels here, and x has 4: "
              "which of the two zero convolutions brings one to the other?")
        check(net.zero_out.channels == (4, 4), "zero_out keeps the number of channels")
        same = controlnet.ControlledBlock(block, 4)
        check(same.zero_in.channels == (4, 4), "c has as many channels as x unless given")

    @POINTS(2)
    def test_its_formula(self, made):
        net, x, c = self.make()
        y = net(x, c, 0.25)
        check(y.shape == x.shape, "the result has the shape of x")
        check(not close(y, net(x, 0 * c, 0.25)), "the condition makes no difference")
        check(not close(y, net(x, c)), "F may take more than x, such as the embedding: both "
              "halves get all further arguments")
        check(close(samples(y), CONTROLLED), "the result differs from Eq. 2. What does the copy "
              "read: x, c, or both? Which half goes through zero_out?")
        y.square().sum().backward()
        check(all(has_gradient(part) for part in (net.copy, net.zero_in, net.zero_out)),
              "a gradient must reach the copy and both zero convolutions: what cuts the graph?")

    @POINTS(2)
    def test_at_the_start_it_is_the_base(self, made):
        net, x, c = self.make()
        nn.init.zeros_(net.zero_out.weight)
        nn.init.zeros_(net.zero_in.weight)
        x.requires_grad_()
        y = net(x, c, 0.25)
        check(torch.equal(y, net.locked(x, 0.25)), "while both zero convolutions return zero, y_c "
              "is F(x; Θ) to the last bit")
        y.sum().backward()
        check(x.grad is not None and x.grad.any(), "a gradient must pass through the locked half "
              "to whatever comes before it")


class TestConditionEncoder:
    """5. ConditionEncoder"""

    @POINTS(2)
    def test_its_layers(self, made):
        encoder = controlnet.ConditionEncoder(3, 8, 4)
        weights = [tuple(parameter.shape) for parameter in encoder.parameters()]
        check(len(encoder) == 8, "there are eight layers: see the list in the handout")
        check(weights == [(4, 48, 3, 3), (4,), (4, 4, 3, 3), (4,), (8, 4, 3, 3), (8,), (8, 8)],
              f"the parameters have other shapes than the list asks for: {weights}")
        found = with_waves(encoder, scale=1.0)(waves(2, 3, 8, 12))
        check(found.shape == (2, 8, 2, 3), "the result has the size of the first feature map: "
              "which padding keeps the size of a 3x3 convolution?")
        check(close(samples(found), ENCODED), "the layers are there, but in another order, or "
              "something follows the zero convolution")

    @POINTS(2)
    def test_it_starts_silent_and_can_learn(self, made):
        encoder = controlnet.ConditionEncoder(1, 8, 2)
        zero = [layer for layer in encoder if isinstance(layer, Mix)]
        check(zero, "at the start the copy must read exactly x, whatever the condition: which "
                    "layer of yours guarantees this?")
        check(len(zero) == 1 and zero[0] is encoder[-1], "exactly one layer starts at zero, and "
              "it is the last one")
        nn.init.zeros_(encoder[-1].weight)
        found = encoder(waves(2, 1, 8, 8))
        check(not found.any(), "while the zero convolution returns zero, so does the encoder")
        found.sum().backward()
        check(has_gradient(encoder[-1]), "the zero convolution must learn in the first step: is "
              "its input zero?")


class TestZeroConvs:
    """6. ZeroConvs.forward"""

    @POINTS(3)
    def test_each_output_has_its_own(self, made):
        convs = controlnet.ZeroConvs([4, 4, 4])
        for i, conv in enumerate((*convs.skips, convs.middle)):
            conv.weight.data = (i + 2) * torch.eye(4)
        skips = [waves(2, 4, 3, 3, phase=phase) for phase in range(3)]
        control = convs(skips, waves(2, 4, 3, 3, phase=3))
        check(isinstance(control, Control), "a Control is returned: residuals for the skips and "
              "one for the middle")
        check(len(control.skips) == 3, "every skip gets a residual")
        for i, residual in enumerate((*control.skips, control.middle)):
            check(not close(residual, waves(2, 4, 3, 3, phase=i)),
                  "a residual is what a zero convolution returns, not the feature map itself")
            check(close(residual, (i + 2) * waves(2, 4, 3, 3, phase=i)), "skip i passes once "
                  "through the zero convolution i, and the middle through its own")
            check(residual.requires_grad, "no gradient reaches a zero convolution")


def small_unet():
    """Return a UNet whose three skips and middle have one shape: a mix-up raises no error."""
    return with_waves(unet.UNet(channels=16, multipliers=(1,), blocks=2, patch=1), scale=0.2)


def inputs():
    """Return x_t, t and prompt."""
    return waves(2, 1, 4, 4), torch.tensor([5, 700]), tokenize(["a three", "seven"])


class TestControlNet:
    """7. ControlNet.forward"""

    @pytest.fixture
    def net(self, made, monkeypatch):
        """Return a ControlNet whose zero convolutions return their inputs."""

        class Given(nn.Module):
            def __init__(self, *_):
                super().__init__()
                self.condition_channels = 1
                self.weight = nn.Parameter(waves(16, 1, 1, 1))

            def forward(self, *maps):
                if len(maps) == 2:  # as zero convolutions
                    return Control(*maps)
                return maps[0] * self.weight.view(1, -1, 1, 1)

        monkeypatch.setattr(controlnet, "ZeroConvs", Given)
        monkeypatch.setattr(controlnet, "ConditionEncoder", Given)
        return controlnet.ControlNet(small_unet())

    def maps(self, net, hint):
        """Return what the zero convolutions are given."""
        control = net(*inputs(), hint=hint)
        check(isinstance(control, Control), "return what `self.zero_convs` returns")
        check(len(control.skips) == 3, "`self.zero_convs` takes the list of skips and the middle")
        return [*control.skips, control.middle]

    @POINTS(2)
    def test_without_a_hint_the_copy_is_the_encoder(self, net):
        skips, middle, _, _ = small_unet().encoder(*inputs())
        found = self.maps(net, torch.zeros(2, 16, 4, 4))
        check(all(torch.equal(a, b) for a, b in zip(found, [*skips, middle], strict=True)),
              "a fresh copy that gets x_t, t, prompt and a hint of zero computes what the base's "
              "encoder computes: which of these does it miss?")

    @POINTS(2)
    def test_where_the_hint_enters(self, net):
        hint = waves(16, phase=3)
        found = self.maps(net, hint.view(1, 16, 1, 1).expand(2, 16, 4, 4))
        without = self.maps(net, torch.zeros(2, 16, 4, 4))
        check(not close(found[3], without[3]), "the hint makes no difference to the middle")
        added = hint.view(1, 16, 1, 1).expand(2, 16, 4, 4)
        check(close(found[0] - without[0], added), "the hint is added once to the output of the "
              "first convolution, so the first skip holds it")
        net.encoder.conv_in.bias.data += hint  # has the effect of this hint, at the right place
        expected = self.maps(net, torch.zeros(2, 16, 4, 4))
        check(all(close(a, b) for a, b in zip(found, expected)), "the copy continues from the "
              "first convolution plus the hint, and meets the hint nowhere else")

    @POINTS(2)
    def test_what_learns(self, net):
        condition = (waves(2, 1, 4, 4) + 1) / 2
        control = net(*inputs(), condition)
        check(control.middle.requires_grad, "no gradient reaches the control: is it detached?")
        sum(x.square().sum() for x in (*control.skips, control.middle)).backward()
        parts = [net.condition_encoder, net.encoder.conv_in, net.encoder.time, net.encoder.summary,
                 net.encoder.text, net.encoder.stages, net.encoder.middle]
        check(all(map(has_gradient, parts)), "a gradient must reach the whole copy, embeddings "
              "and text encoder included, and the condition encoder")
        found = [sum(p.grad.norm() ** 2 for p in part.parameters()) ** 0.5 for part in parts]
        check(close(torch.stack(found), GRADIENTS, 1e-3), "the gradients differ: is a part of the "
              "embedding or of the words detached?")


class TestResiduals:
    """8. adding residuals in UNet.forward"""

    def decoded(self, skips, middle):
        """Return what the decoder gets with these residuals, minus what it gets without them."""
        net, seen = small_unet(), []

        def decoder(skips, middle, emb, words):
            seen.append([*skips, middle])
            return torch.zeros(2, 1, 4, 4)

        net.decoder.forward = decoder
        net(*inputs())
        net(*inputs(), control=Control(skips, middle))
        check(len(seen[1]) == 4, "the decoder gets as many skips as the encoder returned")
        return [after - before for before, after in zip(*seen)]

    @POINTS(2)
    def test_each_map_gets_its_residual(self, made):
        full = [torch.full((2, 16, 4, 4), value) for value in (1.0, 2.0, 4.0, 8.0)]
        found = [difference.mean().item() for difference in self.decoded(full[:3], full[3])]
        check(any(found[:3]), "the residuals of the skips do not arrive at the decoder")
        check(not close(torch.tensor(found[:3]), [4, 2, 1]), "residual i belongs to skip i: which "
              "one comes first?")
        check(close(torch.tensor(found), [1, 2, 4, 8]), "each residual is added once to its skip, "
              "or to the middle, without a weight")

    @POINTS(2)
    def test_the_base_is_not_disturbed(self, made):
        zeros = torch.zeros(2, 16, 4, 4)
        found = self.decoded([zeros + 1, zeros, zeros], zeros)
        check(not any(difference.any() for difference in found[1:]), "what is added to the first "
              "skip changes a later one: residuals go to the decoder, not into the encoder")
        net = small_unet().eval().requires_grad_(False)
        residuals = [torch.zeros(2, 16, 4, 4, requires_grad=True) for _ in range(4)]
        y = net(*inputs(), control=Control(residuals[:3], residuals[3]))
        check(torch.equal(y, net(*inputs())), "residuals of zero must not change a bit")
        check(y.requires_grad, "no gradient reaches the control: is something under no_grad?")
        y.square().sum().backward()
        check(all(residual.grad is not None and residual.grad.any() for residual in residuals),
              "a gradient must reach every residual: is one of them detached?")


class TestSum:
    """9. summing and scaling conditions"""

    def control(self, value):
        skips = [torch.full((1, 2, 2, 2), value), torch.full((1, 4, 1, 1), 10 * value)]
        return Control(skips, torch.tensor(100 * value))

    def numbers(self, control):
        check(isinstance(control, Control), "the result is a Control, to be added or scaled again")
        return [skip.mean().item() for skip in control.skips] + [control.middle.mean().item()]

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
        cases = {"a + b": lambda: long + short,
                 "ZeroConvs.forward": lambda: controlnet.ZeroConvs([16] * 3)(maps[:2], maps[3]),
                 "UNet.forward": lambda: small_unet()(*inputs(), control=short)}
        for case, call in cases.items():
            try:
                call()
            except NotImplementedError:
                raise
            except Exception:  # whichever it is, it is noticed
                continue
            check(False, f"{case}: with two residuals for three skips, the third is ignored "
                         "without a word: which option of `zip` refuses that?")

    @POINTS(1)
    def test_another_dtype_is_converted(self, made):
        net, seen = small_unet(), []

        def decoder(skips, middle, emb, words):
            seen.extend([*skips, middle])
            return torch.zeros(2, 1, 4, 4)

        net.decoder.forward = decoder
        maps = [waves(2, 16, 4, 4).double()] * 4
        net(*inputs(), control=Control(maps[:3], maps[3]))
        check(all(x.dtype == torch.float32 for x in seen), "the decoder must get skips and a "
              "middle of the base's dtype, whatever dtype the residuals have")
