"""The experiments' own networks, bit by bit, and their verdicts on rows that are made up."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minicnet.conditions import canny
from minicnet.controlnet import Control, ControlNet, controlled, freeze
from minicnet.diffusion import NoiseSchedule
from minicnet.digits import draw_digits
from minicnet.experiments import (
    attention,
    data_size,
    forgetting,
    guidance,
    many_conditions,
    sudden_convergence,
    transfer,
)
from minicnet.experiments import zero_convolution as zc
from minicnet.experiments.concatenated import ConcatenatedUNet, ConditionItself
from minicnet.training import make_optimizers
from minicnet.unet import CrossAttention, UNet
from minicnet.words import DARK, DIGITS, LENGTH, LIGHT, tokenize


@pytest.fixture
def base(randomised):
    return freeze(randomised(UNet(channels=8)))


def inputs(channels=1):
    return (torch.randn(3, channels, 12, 12), torch.tensor([0, 7, 900]),
            tokenize(["a three", "a thick five leaning left", ""]))


def edges(channels=1):
    return torch.rand(3, channels, 12, 12).round()


def weights(net):
    return {name: weight.clone() for name, weight in net.state_dict().items()}


# concatenated: the base, fine-tuned


@pytest.mark.parametrize("channels, condition_channels, patch", [(1, 1, 2), (3, 1, 2), (1, 3, 1), (1, 1, 4)])
def test_fine_tuning_starts_from_the_base_for_any_condition(randomised, channels, condition_channels, patch):
    unet = randomised(UNet(in_channels=channels, channels=8, multipliers=(1,), patch=patch))
    net, condition = ConcatenatedUNet(unet, condition_channels), edges(condition_channels)
    x = inputs(channels)
    expected, found = unet(*x).detach(), controlled(net, [(ConditionItself(), condition, 1)])(*x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    found.square().sum().backward()
    gradient = net.unet.encoder.conv_in.weight.grad
    assert gradient.shape == (8, (channels + condition_channels) * patch**2, 3, 3)
    assert (gradient[:, channels * patch**2 :] != 0).any()
    assert all(p.grad is not None and p.data_ptr() not in {q.data_ptr() for q in unet.parameters()}
               for p in net.parameters())


def test_the_condition_is_read_and_the_share_of_x_t_is_one_of_x_t_alone(base):
    net, x, condition = ConcatenatedUNet(base), inputs(), edges()
    nn.init.normal_(net.unet.encoder.conv_in.weight)
    assert not torch.allclose(net(*x, condition), net(*x, 1 - condition))
    nn.init.zeros_(net.unet.decoder.conv_out.weight)
    nn.init.zeros_(net.unet.decoder.conv_out.bias)
    share = net.unet.share(net.unet.encoder.embed(*x[1:])[0])[:, :, None, None]
    assert torch.equal(net(*x, condition), share * x[0])


# zero_convolution


@pytest.mark.parametrize("variant", zc.VARIANTS)
def test_before_training_only_gaussian_convolutions_change_the_base(base, variant):
    x, net = inputs(), zc.VARIANTS[variant](base)
    assert torch.equal(controlled(base, [(net, edges(), 1)])(*x), base(*x)) == (variant != "gaussian")


def test_the_gaussian_variant_is_a_control_net_but_for_its_zero_convolutions(base):
    net, plain = zc.gaussian_control(base), ControlNet(base)
    convs = [net.condition_encoder[-1], *net.zero_skips, net.zero_middle]
    assert not any(conv.bias.any() for conv in convs)
    scaled = torch.cat([conv.weight.flatten() * conv.in_channels**0.5 for conv in convs])
    assert abs(scaled.mean()) < 0.1 and abs(scaled.std() - 1) < 0.1
    assert all(torch.equal(weight, net.encoder.state_dict()[name]) for name, weight in weights(plain.encoder).items())


def test_control_net_lite_has_one_convolution_for_each_block_and_learns_with_all_of_them(base, randomised):
    net, (x_t, t, prompt), condition = zc.ControlNetLite(base), inputs(), edges()
    control = net(x_t, t, prompt, hint=net.encode(condition))
    full = ControlNet(base)(x_t, t, prompt, condition)
    assert [s.shape for s in control.skips] == [s.shape for s in full.skips]
    assert control.middle.shape == full.middle.shape and len(net.stages) == len(base.encoder.stages)
    randomised(net)
    controlled(base, [(net, condition, 1)])(x_t, t, prompt).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    hint = net.encode(condition)
    assert torch.equal(net(x_t, t, prompt, hint).middle, net(x_t, t // 2, prompt.flip(0), hint).middle)
    assert not torch.equal(net(x_t, t, prompt, hint).middle, net(x_t, t, prompt, net.encode(0 * condition)).middle)


def test_the_four_prompts_over_the_edges_of_a_three():
    kinds = {"none": ("", 1), "insufficient": ("a digit", 2), "conflicting": ("a five", 2), "perfect": ("a three", 2)}
    assert set(kinds) == set(zc.PROMPTS)
    for kind, (text, w) in kinds.items():
        prompt, guidance_ = zc.prompted(kind, torch.tensor([3, 3]))
        assert torch.equal(prompt, tokenize([text, text])) and guidance_ == w


def rows_of_zeros(zero, gaussian, lite, jump=0.1):
    """Rows in which every measure of a variant is this good, from 0 to 1."""
    rows = {}
    for seed in (0, 1, 2):
        for variant, good in dict(zero=zero, gaussian=gaussian, lite=lite).items():
            rows[f"{variant}, start-{seed}"] = {"loss_change": jump if variant == "gaussian" else 0.0}
            for prompt in zc.PROMPTS:
                f1 = good + 0.005 * (seed - 1) * (-1 if variant == "gaussian" else 1)
                rows[f"{variant}, {prompt}-{seed}"] = {"edge_f1": f1, "label_accuracy": f1, "frechet": 10 - 9 * f1}
    return rows


@pytest.mark.parametrize("values, word", [
    ((0.9, 0.7, 0.7), "reproduced"), ((0.9, 0.65, 0.7), "reproduced"), ((0.9, 0.5, 0.95), "mixed"),
    ((0.9, 0.85, 0.5), "mixed"), ((0.9, 0.898, 0.7), "not reproduced"), ((0.7, 0.9, 0.7), "not reproduced"),
    ((0.9, 0.7, 0.7, 0.0), "mixed")])
def test_zero_convolutions_help_if_gaussian_ones_harm_and_fall_to_the_level_of_lite(values, word):
    found, why = zc.verdict(rows_of_zeros(*values))
    assert found == word and f"{values[0]:.3f} ± 0.005" in why


# sudden_convergence


def history(f1):
    return [{"step": 10 * i, "edge_f1": value, "gap": 0.1} for i, value in enumerate(f1)]


@pytest.mark.parametrize("f1, word", [
    ([0.5] * 5 + [0.99] * 6, "reproduced"), ([0.5 + i / 20 for i in range(11)], "not reproduced"),
    ([0.5, 0.5, 0.5, 0.7, 0.8, 0.9, 1, 1, 1, 1, 1], "mixed"), ([0.6] * 11, "not reproduced")])
def test_convergence_is_called_sudden_only_if_it_is(f1, word):
    rows = {f"edges-{seed}": sudden_convergence.summary(history(f1)) for seed in range(3)}
    assert sudden_convergence.verdict(rows)[0] == word


# data_size


def rows_of_sizes(floor, few, all_, read=0.95):
    rows = {}
    for seed, noise in enumerate((-0.001, 0.0, 0.001)):
        rows[f"base-{seed}"] = {"edge_f1": floor + noise}
        for method in data_size.METHODS:
            for size in data_size.SIZES:
                value = all_ + noise if size in ("all", "10000") else few - noise
                rows[f"{method} {size}-{seed}"] = {"edge_f1": value, "label_accuracy": 0.95 if size == "all" else read}
    return rows


@pytest.mark.parametrize("numbers, word", [
    ((0.76, 0.95, 0.98), "reproduced"),
    ((0.76, 0.979, 0.98), "mixed"),  # all images are not clearly better
    ((0.76, 0.99, 0.98), "mixed"),  # nor when they are worse
    ((0.76, 0.90, 0.98), "not reproduced"),
    ((0.76, 0.95, 0.98, 0.8), "not reproduced"),  # edges are followed, but digits are not read
    ((0.76, 0.77, 0.78), "not reproduced")])  # nothing was learned at all
def test_few_images_suffice_only_if_they_bring_most_of_what_all_bring(numbers, word):
    found, why = data_size.verdict(rows_of_sizes(*numbers))
    assert found == word and f"{numbers[2]:.3f} ± 0.001" in why and ("tell nothing" in why) == (numbers[2] < 0.8)


# forgetting


def test_unlocked_starts_from_the_base_and_trains_its_decoder_and_the_control_only(base):
    before, net = weights(base), forgetting.Unlocked(base)
    x, controls = inputs(), [(net.control_net, torch.ones(3, 1, 12, 12), 1)]
    assert torch.equal(controlled(net.unet, controls)(*x), base(*x))
    optimizers = make_optimizers(net.train())
    for _ in range(4):  # the condition encoder wakes last, at the third step
        controlled(net.unet, controls)(*x).square().mean().backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            optimizer.step()
            optimizer.zero_grad()
    after = weights(net.unet)
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if name.startswith("decoder.")}
    assert all(torch.equal(weight, before[name]) for name, weight in weights(base).items())
    assert net.control_net.condition_encoder[-1].weight.any()


def test_without_edges_the_base_under_a_control_is_the_base_and_fine_tuning_sees_an_empty_map(base, randomised):
    x, control = inputs(), randomised(ControlNet(base))
    assert torch.equal(controlled(base, [(control, edges(), 0)])(*x), base(*x))
    net = ConcatenatedUNet(base)
    nn.init.normal_(net.unet.encoder.conv_in.weight)
    assert torch.equal(controlled(net, [(ConditionItself(), edges(), 0)])(*x), net(*x, torch.zeros(3, 1, 12, 12)))


def rows_of_lessons(lost, ahead, lost_shown=0.0):
    """Rows in which fine-tuning reads `lost` fewer labels without edges, and the control is `ahead` with edges."""
    rows = {}
    for seed, noise in enumerate((-0.005, 0.0, 0.005)):
        for method in ("base", *forgetting.METHODS):
            fall, fall_shown = (lost, lost_shown) if method == "finetuned" else (0.0, 0.0)
            behind, own = (0, noise) if method == "control" else (ahead, 0)
            rows[f"{method}-{seed}"] = {
                "without_label_accuracy": 0.95 - fall + noise * (method == "finetuned"),
                "without_frechet": 5 + 20 * fall, "shown_without_label_accuracy": 0.9 - fall_shown,
                "with_label_accuracy": 0.9 - behind - own, "with_edge_f1": 0.97 - behind - own,
                "with_frechet": 4 + behind + own}
    return rows


@pytest.mark.parametrize("numbers, word", [
    ((0.5, 0.1), "reproduced"),
    ((0.5, 0.1, 0.45), "mixed"),  # what it forgot is to draw without edges
    ((0.5, 0.0), "mixed"),  # forgets, but draws what it was not shown as well as the control
    ((0.5, 0.006), "mixed"),  # a lead within the seeds' deviation is none
    ((0.05, 0.1), "mixed"),  # too little to be called forgetting
    ((0.0, -0.1), "not reproduced")])
def test_fine_tuning_forgets_only_if_digits_not_shown_suffer_most(numbers, word):
    assert forgetting.verdict(rows_of_lessons(*numbers))[0] == word


# many_conditions


def test_the_halves_of_the_edges_add_up_to_the_edges():
    images, _ = draw_digits(20)
    left, right = many_conditions.left(images), many_conditions.right(images)
    assert torch.equal(left + right, canny(images)) and left.any() and right.any()
    assert not left[..., 14:].any() and not right[..., :14].any()


def rows_of_many(both, left_and_right=0.9):
    f1, error = both
    values = {"neither": (0.5, 0.4), "edges": (0.95, 0.4), "colour": (0.55, 0.05), "edges + colour": (f1, error),
              "left": (0.7, 0.4), "right": (0.7, 0.4), "left + right": (left_and_right, 0.4), "4 x edges": (0.4, 0.5),
              "edges + another image's colour": (0.9, 0.1)}
    return {f"{name}-{seed}": {"edge_f1": a + seed / 1000, "colour_error": b, "label_accuracy": 0.9}
            for name, (a, b) in values.items() for seed in range(3)}


@pytest.mark.parametrize("rows, word", [
    (rows_of_many((0.94, 0.06)), "reproduced"), (rows_of_many((0.94, 0.3)), "mixed"),
    (rows_of_many((0.6, 0.06)), "mixed"), (rows_of_many((0.6, 0.3), 0.65), "not reproduced"),
    (rows_of_many((0.94, 0.06), 0.65), "mixed"),
    ({key: {"edge_f1": 0.5, "colour_error": 0.4} for key in rows_of_many((0, 0))}, "not reproduced")])
def test_conditions_compose_only_if_the_sum_keeps_both(rows, word):
    assert many_conditions.verdict(rows)[0] == word


# transfer


def test_the_offset_moves_the_copy_as_the_base_has_moved_and_nothing_else(base, randomised):
    new, net = freeze(randomised(UNet(channels=8), seed=2)), freeze(randomised(ControlNet(base), seed=3))
    before, old, moved = weights(net), weights(base.encoder), weights(transfer.offset(net, base, new))
    for name, weight in before.items():
        part = name.removeprefix("encoder.")
        shift = new.encoder.state_dict()[part] - old[part] if name.startswith("encoder.") else 0
        torch.testing.assert_close(moved[name], weight + shift)
        assert torch.equal(net.state_dict()[name], weight)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(transfer.offset(net, base, base)).items())


def rows_of_styles(old, own=0.98, frechet=5.0, styles=tuple(transfer.STYLES)):
    """Rows in which the base alone has edge-F1 0.7, its control gives `own`, and the old control `old` in `styles`."""
    rows = {}
    for seed in (0, 1, 2):
        def row(f1, frechet=5.0, wobble=0.01 * (seed - 1)):
            return {"edge_f1": f1 + wobble, "frechet": frechet, "label_accuracy": 1.0}

        rows |= {f"digits, floor-{seed}": row(0.7), f"digits, own-{seed}": row(own)}
        for style in transfer.STYLES:
            rows |= {f"{style}, alone-{seed}": row(0.7), f"{style}, offset-{seed}": row(0.9),
                     f"{style}, old-{seed}": row(old if style in styles else 0.7, frechet)}
    return rows


@pytest.mark.parametrize("made, word", [
    (dict(old=0.95), "reproduced"), (dict(old=0.75), "not reproduced"), (dict(old=0.95, frechet=7.0), "not reproduced"),
    (dict(old=0.95, styles=("thick",)), "mixed"), (dict(old=0.95, own=0.71), "not reproduced")])
def test_a_control_transfers_if_half_of_its_effect_stays_without_spoilt_images(made, word):
    assert transfer.verdict(rows_of_styles(**made))[0] == word


# guidance


def test_each_residual_is_weighted_by_its_own_height():
    control = Control([torch.randn(2, 4, h, h) for h in (14, 14, 7, 7)], torch.randn(2, 4, 7, 7))
    for variant, fine, coarse in [("only", 1, 1), ("weighted", 1, 2), ("reduced", 0.5, 1)]:
        found = guidance.reweighted(variant, control)
        for residual, before in zip([*found.skips, found.middle], [*control.skips, control.middle], strict=True):
            assert torch.equal(residual, (fine if before.shape[-1] == 14 else coarse) * before)
    wide = Control([torch.ones(1, 1, 64, 32), torch.ones(1, 1, 8, 16)], torch.ones(1, 1, 8, 16))
    assert guidance.reweighted("weighted", wide).middle.unique().tolist() == [64 / 8]


def test_guidance_strengthens_what_the_edges_change_in_each_variant(base, randomised):
    x, condition, net = inputs(), edges(), freeze(randomised(ControlNet(base), seed=1))

    def eps(variant, w):
        return controlled(guidance.strengthened(base, variant, w), [(net, condition, 1)])(*x)

    alone, both, found = base(*x), controlled(base, [(net, condition, 1)])(*x), []
    assert torch.equal(eps("both", 5), both)
    torch.testing.assert_close(eps("only", 1), both, rtol=1e-3, atol=1e-3)
    for variant in guidance.VARIANTS:
        assert torch.equal(eps(variant, 0), alone)
        found.append(eps(variant, 3))
        torch.testing.assert_close(found[-1] - alone, 3 * (eps(variant, 1) - alone), rtol=1e-2, atol=1e-2)
    assert not any(torch.allclose(found[i], found[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def rows_of_guidance(good):
    """Rows of variants that are this good (0 to 1) by both measures; all others 0.7. good: {"weighted 2": 0.9}"""
    names = ["both", *(f"{variant} {w}" for variant in guidance.VARIANTS for w in guidance.GUIDANCE)]
    return {f"{name}-{seed}": {"edge_f1": value, "frechet": 10 - 9 * value, "label_accuracy": value}
            for name in names for seed in (0, 1, 2)
            for value in [good.get(name, 0.7) + 0.005 * (seed - 1) * (-1 if name.startswith("weighted") else 1)]}


@pytest.mark.parametrize("good, word", [
    ({"weighted 2": 0.9, "weighted 4": 0.9}, "reproduced"), ({"weighted 2": 0.9}, "not reproduced"),
    ({"reduced 2": 0.9, "reduced 4": 0.9, "reduced 8": 0.9}, "not reproduced"), ({}, "not reproduced"),
    ({"weighted 2": 0.706, "weighted 4": 0.706}, "not reproduced"),
    ({"both": 0.9, "weighted 2": 0.8}, "not reproduced"),
    ({"weighted 2": 0.9, "only 2": 0.9, "weighted 4": 0.9, "only 4": 0.95}, "not reproduced")])
def test_weighting_helps_if_it_beats_both_others_at_the_same_w(good, word):
    assert guidance.verdict(rows_of_guidance(good))[0] == word


# attention: where places look


def test_what_is_watched_are_the_weights_of_cross_attention_with_the_prompt_at_every_step(base, randomised):
    unet = freeze(randomised(UNet(in_channels=3, channels=8)))
    lab = SimpleNamespace(unet=unet, schedule=NoiseSchedule.cosine(1000), device="cpu", sampling_steps=3,
                          test_images=torch.zeros(1, 3, 28, 28))
    prompts = ["a red seven on navy paper", "a navy seven on red paper"]
    images, seen = attention.watched(lab, prompts, seed=0)
    assert images.shape == (2, 3, 28, 28) and list(seen) == [999, 500, 0]
    x_t, _, maps = seen[500]
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 7, 7))
    assert maps[:, 6:].max() == 0 < maps[:, :6].min()  # padding is looked at by nobody
    layers, given = [m for m in unet.modules() if isinstance(m, CrossAttention)], []
    hooks = [layer.register_forward_hook(lambda layer, x, _: given.append(layer.weights(x[0], x[2])))
             for layer in layers]
    unet(x_t, torch.tensor([500, 500]), tokenize(prompts))
    assert len(layers) == len(given) == 2
    torch.testing.assert_close(maps, torch.stack(given).mean((0, 2)).mT.unflatten(-1, (7, 7)), rtol=1e-2, atol=1e-3)
    assert not any(hook.remove() for hook in hooks) and not any(layer._forward_hooks for layer in layers)


def test_every_digit_and_colour_has_its_turn_in_the_prompts_watched():
    prompts = attention.prompts_of_all_words(20)
    assert tokenize(prompts).shape == (20, LENGTH)
    words = [prompt.split() for prompt in prompts]
    assert {w[2] for w in words} == set(DIGITS) and {w[1] for w in words} == set(LIGHT)
    assert {w[4] for w in words} == set(DARK) and all(w[1::2] == [w[1], "on", "paper"] for w in words)


@pytest.mark.parametrize("ink, digit, paper, word", [
    (1.3, 1.2, 0.8, "reproduced"), (1.3, 1.0, 0.8, "mixed"), (1.0, 1.0, 0.8, "mixed"), (1, 1, 1, "not reproduced")])
def test_places_look_at_their_words_if_they_do_by_a_tenth_for_every_seed(ink, digit, paper, word):
    rows = {f"words-{seed}": {"ink": ink + seed / 100, "digit": digit, "paper": paper} for seed in (0, 1, 2)}
    assert attention.verdict(rows)[0] == word
