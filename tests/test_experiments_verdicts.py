"""The experiments' own networks, bit by bit, and their verdicts on rows that are made up."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minicnet.controlnet import Control, ControlNet, controlled, freeze
from minicnet.diffusion import NoiseSchedule
from minicnet.digits import draw_digits
from minicnet.experiments import (
    attention,
    data_size,
    forgetting,
    guidance,
    many_conditions,
    photos,
    sudden_convergence,
    teaching,
    transfer,
)
from minicnet.experiments import zero_convolution as zc
from minicnet.experiments.concatenated import ConcatenatedUNet, ConditionItself
from minicnet.experiments.teaching import Unlocked
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


@pytest.mark.parametrize("trial, rate, steps", [("rate 1, all steps", 1, 150), ("rate 0.1, a third", 0.1, 50)])
def test_a_trial_sets_rate_and_length(base, trial, rate, steps):
    made = []

    def train_nothing(name, seed, make, eps_model, images, prompts, **told):
        made.append(told)
        return make(), []

    lab = SimpleNamespace(unet=base, steps=300, trained=train_nothing)
    unet, control = teaching.taught(lab, "finetuned", "nothing", 0, None, None, trial)
    assert made == [{"rate": rate, "steps": steps}]
    assert isinstance(unet, ConcatenatedUNet) and isinstance(control, ConditionItself)


def rows_of_trials(best):
    """Rows in which fine-tuning follows edges best after the trial of that name."""
    return {f"{trial}-0": dict.fromkeys(("edge_f1", "shown_with_edge_f1", "with_edge_f1", "without_label_accuracy"),
                                        0.95 if trial == best else 0.9) for trial in teaching.TRIALS}


def test_fine_tuning_gets_what_follows_edges_best_and_an_unlocked_decoder_its_rate():
    rows = rows_of_trials("rate 0.3, a third")
    assert [teaching.chosen(rows, way, "edge_f1") for way in ("finetuned", "unlocked", "control")] == [
        "rate 0.3, a third", "rate 0.3, all steps", "rate 1, all steps"]


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
    texts = {"none": "", "insufficient": "a digit", "conflicting": "a five", "perfect": "a three"}
    assert set(texts) == set(zc.PROMPTS)
    for kind, text in texts.items():
        assert torch.equal(zc.prompted(kind, torch.tensor([3, 3])), tokenize([text, text]))


def scored(accuracy, noise=0.0, **more):
    """A row of two blocks of images, in which this share shows the right digit."""
    return {"label_accuracy": accuracy, "label_accuracy_blocks": [accuracy - noise, accuracy + noise], **more}


def rows_of_zeros(imperfect, perfect=(0.97, 0.97, 0.97), none=None, jump=0.1):
    """Rows in which this share of images is right for zero, gaussian, lite. none: without a prompt, if other."""
    rows = {}
    for seed in (0, 1, 2):
        for i, variant in enumerate(zc.VARIANTS):
            rows[f"{variant}, start-{seed}"] = {"loss_change": jump if variant == "gaussian" else 0.0}
            for kind in zc.PROMPTS:
                share = {"perfect": perfect, "none": none or imperfect}.get(kind, imperfect)[i]
                rows[f"{variant}, {kind}-{seed}"] = scored(share, 0.01 * (1 - 2 * (i > 0)))
    return rows


@pytest.mark.parametrize("made, word", [
    (dict(imperfect=(0.9, 0.7, 0.7)), "reproduced"), (dict(imperfect=(0.9, 0.65, 0.7)), "reproduced"),
    (dict(imperfect=(0.9, 0.85, 0.5)), "not reproduced"),  # gaussian is nearer to zero
    (dict(imperfect=(0.9, 0.7, 0.9)), "not reproduced"), (dict(imperfect=(0.7, 0.9, 0.9)), "not reproduced"),
    (dict(imperfect=(0.9, 0.899, 0.899)), "not reproduced"),  # within chance
    (dict(imperfect=(0.9, 0.7, 0.7), perfect=(0.97, 0.9, 0.9)), "mixed"),
    (dict(imperfect=(0.9, 0.9, 0.9), none=(0.9, 0.7, 0.7)), "mixed"),
    (dict(imperfect=(0.9, 0.7, 0.7), jump=0.0), "mixed")])
def test_zero_convolutions_help_if_others_fail_where_prompts_are_imperfect(made, word):
    found, why = zc.verdict(rows_of_zeros(**made))
    assert found == word and "0.970 with zero convolutions, +0.0" in why


# sudden_convergence


def test_residuals_are_held_against_the_features_and_split_into_what_hangs_on_edges(base, randomised):
    images = draw_digits(8)[0]
    lab = SimpleNamespace(unet=base, schedule=NoiseSchedule.cosine(1000), device="cpu", test_images=images,
                          test_prompts=tokenize(["a six"] * 8))
    net = ControlNet(base)
    assert set(sudden_convergence.residuals(lab, net).values()) == {0.0}
    nn.init.ones_(net.zero_middle.bias)  # a residual of 1, whatever the edges
    found = sudden_convergence.residuals(lab, net)
    last = len(net.zero_skips)
    assert found[f"size {last}"] > 0 and found[f"share {last}"] < 1e-6 and found["size 0"] == 0
    found = sudden_convergence.residuals(lab, randomised(net))
    assert all(0 < value < 1 for name, value in found.items() if name.startswith("share"))


def rows_of_curves(f1, raw=None, frechet=5.0):
    """Rows of three seeds: edge-F1 of the averaged weights every 10 steps, and of the two others, if other than that.
    frechet: of the worst look."""
    def row(names):
        curves = {"of": 100, "steps": [10 * i for i in range(len(f1))]}
        for name in names:
            curves[f"{name} edge_f1"] = f1 if name == "averaged" else raw or f1
            curves[f"{name} frechet"] = [5.0, frechet, *[5.0] * (len(f1) - 2)]
            curves |= {f"{name} {what} {i}": [0.1] * len(f1) for what in ("size", "share") for i in range(2)}
        return curves

    rows = {f"warm-up-{seed}": row(("averaged", "raw")) for seed in range(3)}
    return rows | {f"no warm-up-{seed}": row(("raw, no warm-up",)) for seed in range(3)}


SUDDEN, GRADUAL = [0.5] * 5 + [0.99] * 6, [0.5 + i / 20 for i in range(11)]


@pytest.mark.parametrize("made, word", [
    (dict(f1=SUDDEN), "reproduced"), (dict(f1=GRADUAL), "not reproduced"), (dict(f1=[0.6] * 11), "not reproduced"),
    (dict(f1=SUDDEN, raw=GRADUAL), "mixed"), (dict(f1=SUDDEN, frechet=12.0), "mixed")])
def test_convergence_is_called_sudden_only_if_it_is_with_all_weights_and_images_stay_good(made, word):
    assert sudden_convergence.verdict(rows_of_curves(**made))[0] == word


# data_size


def in_blocks(name, value, noise):
    """A measure, and its values in two blocks of images."""
    return {name: value, f"{name}_blocks": [value - noise, value + noise]}


def rows_of_sizes(floor, few, all_, read=0.95):
    """Rows of edge-F1 of the base, of controls of 100 and 1,000 images, and of one of all; read: labels, with few."""
    rows = rows_of_trials("rate 0.1, a third")
    for seed in (0, 1, 2):
        rows[f"base-{seed}"] = {"edge_f1": floor}
        for size in data_size.SIZES:
            value, noise, share = (all_, 0.001 * seed, 0.95) if size == "all" else (few, 0, read)
            rows[f"control {size}-{seed}"] = {**in_blocks("edge_f1", value, noise), "label_accuracy": share}
    for way, size in data_size.RIVALS:
        rows[f"{way} {size}-0"] = in_blocks("edge_f1", few - 0.1, 0)
    return rows


@pytest.mark.parametrize("numbers, word", [
    ((0.76, 0.95, 0.98), "reproduced"),
    ((0.76, 0.9799, 0.98), "mixed"),  # all images are not clearly better
    ((0.76, 0.99, 0.98), "mixed"),  # nor when they are worse
    ((0.76, 0.90, 0.98), "not reproduced"),
    ((0.76, 0.95, 0.98, 0.8), "not reproduced"),  # edges are followed, but digits are not read
    ((0.76, 0.77, 0.78), "not reproduced")])  # nothing was learned at all
def test_few_images_suffice_only_if_they_bring_most_of_what_all_bring(numbers, word):
    found, why = data_size.verdict(rows_of_sizes(*numbers))
    assert found == word and "+0.100 (+0.100 to +0.100) over all fine-tuned, at its best (rate 0.1, a third)" in why
    assert ("tell nothing" in why) == (numbers[2] < 0.8)



# forgetting


def test_unlocked_starts_from_the_base_and_trains_its_decoder_and_the_control_only(base):
    before, net = weights(base), Unlocked(base)
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
    rows = rows_of_trials("rate 1, a third")
    for seed in (0, 1, 2):
        for way in ("base", *teaching.WAYS):
            fall, fall_shown = (lost, lost_shown) if way == "finetuned" else (0.0, 0.0)
            behind, noise = (0, 0.01 * seed) if way == "control" else (ahead, 0)
            rows[f"{way}-{seed}"] = {
                **in_blocks("without_label_accuracy", 0.95 - fall, noise),
                "shown_without_label_accuracy": 0.9 - fall_shown,
                **in_blocks("with_label_accuracy", 0.9 - behind, noise),
                **in_blocks("with_edge_f1", 0.97 - behind, noise)}
    return rows


@pytest.mark.parametrize("numbers, word", [
    ((0.5, 0.1), "reproduced"),
    ((0.5, 0.1, 0.45), "mixed"),  # what it forgot is to draw without edges
    ((0.5, 0.0), "mixed"),  # forgets, but draws what it was not shown as well as the control
    ((0.5, 0.006), "mixed"),  # a lead within the blocks' deviation is none
    ((0.05, 0.1), "mixed"),  # too little to be called forgetting
    ((0.0, -0.1), "not reproduced")])
def test_fine_tuning_forgets_only_if_digits_not_shown_suffer_most(numbers, word):
    assert forgetting.verdict(rows_of_lessons(*numbers))[0] == word


# many_conditions


def rows_of_many(f1, error):
    """Rows in which the sum of edges and colours has this edge-F1 and this colour error."""
    pairs = itertools.product(many_conditions.STRENGTHS, repeat=2)
    values = {key: (0.9, 0.1) for key in itertools.starmap(many_conditions.key, pairs)}
    values |= {many_conditions.NEITHER: (0.5, 0.4), many_conditions.EDGES: (0.95, 0.4),
               many_conditions.COLOUR: (0.55, 0.05), many_conditions.BOTH: (f1, error),
               many_conditions.CONTRARY: (0.9, 0.1), many_conditions.TWO: (0.8, 0.4)}
    return {f"{name}-{seed}": {**in_blocks("edge_f1", a, 0.01), **in_blocks("colour_error", b, 0.01), "other_f1": 0.7}
            for name, (a, b) in values.items() for seed in range(3)}


@pytest.mark.parametrize("both, word", [
    ((0.94, 0.06), "reproduced"), ((0.94, 0.3), "mixed"), ((0.6, 0.06), "mixed"), ((0.6, 0.3), "not reproduced")])
def test_conditions_compose_only_if_the_sum_keeps_both(both, word):
    found, why = many_conditions.verdict(rows_of_many(*both))
    assert found == word and f"the edge-F1 of edges alone by {both[0] - 0.95:+.3f}" in why
    assert many_conditions.grid(rows_of_many(*both), "edge_f1")[2][2] == both[0]


def test_the_sum_of_nets_that_follow_nothing_says_nothing():
    rows = {key: {**row, "edge_f1": 0.5} for key, row in rows_of_many(0.94, 0.06).items()}
    assert many_conditions.verdict(rows) == ("not reproduced", "the controls do not even follow their conditions alone")


@pytest.mark.parametrize("both, word", [
    ((0.84, 0.02), "reproduced"), ((0.84, 0.2), "mixed"), ((0.6, 0.02), "mixed"),
    ((0.84, 0.48), "mixed"), ((0.1, 0.48), "not reproduced")])  # what makes it worse is no gain
def test_on_photographs_too_the_sum_must_gain_what_each_gains(both, word):
    values = {"neither": (0.48, 0.24), "edges": (0.8, 0.23), "colour": (0.6, 0.015), "edges + colour": both}
    rows = {f"{name}-{seed}": {"edge_f1": f1, "colour_error": error} for name, (f1, error) in values.items()
            for seed in range(3)}
    assert photos.verdict(rows)[0] == word


# transfer


def rows_of_styles(old, own=0.98, frechet=5.0, styles=("thick", "blurred", "inverted"), badly_drawn=()):
    """Rows in which bases alone have edge-F1 0.7, the old one's control gives it `own`, and `old` to some `styles`."""
    def row(f1, noise, frechet=5.0, read=0.95):
        return {**in_blocks("edge_f1", f1, noise), "frechet": frechet, "label_accuracy": read}

    rows = {}
    for seed in (0, 1, 2):
        rows |= {f"old base, alone-{seed}": row(0.7, 0), f"old base, control-{seed}": row(own, 0)}
        for style in ("thick", "blurred", "inverted"):
            rows |= {f"{style}, alone-{seed}": row(0.7, 0, read=0.3 if style in badly_drawn else 0.95),
                     f"{style}, control-{seed}": row(old if style in styles else 0.7, 0.02 * seed, frechet)}
    return rows


@pytest.mark.parametrize("made, word", [
    (dict(old=0.95), "reproduced"), (dict(old=0.75), "not reproduced"), (dict(old=0.95, frechet=7.0), "not reproduced"),
    (dict(old=0.95, styles=("thick",)), "mixed"), (dict(old=0.95, own=0.71), "not reproduced"),
    (dict(old=0.95, styles=("thick",), badly_drawn=("blurred", "inverted")), "reproduced"),
    (dict(old=0.95, badly_drawn=("thick", "blurred", "inverted")), "mixed")])
def test_a_control_transfers_if_half_of_its_effect_stays_without_spoilt_images_on_bases_that_draw_well(made, word):
    rows = rows_of_styles(**made)
    assert transfer.verdict(rows)[0] == word
    assert transfer.kept(rows, "thick") == pytest.approx((made["old"] - 0.7) / (made.get("own", 0.98) - 0.7))


# guidance


def test_each_residual_is_weighted_by_its_own_height_or_place():
    control = Control([torch.randn(2, 4, h, h) for h in (14, 14, 7, 7)], torch.randn(2, 4, 7, 7))
    for way, weights in {"only": (1, 1, 1, 1, 1), "formula": (1, 1, 2, 2, 2), "paper": (1, 2, 4, 8, 8),
                         "reduced": (1 / 8, 1 / 4, 1 / 2, 1, 1)}.items():
        found = guidance.weighted(way, control)
        for w, residual, before in zip(weights, [*found.skips, found.middle], [*control.skips, control.middle],
                                       strict=True):
            assert torch.equal(residual, w * before)
    assert guidance.weights("formula", [64, 32, 16, 8]) == [1, 2, 4, 8]  # as in Stable Diffusion


def test_guidance_strengthens_what_the_edges_change_in_each_way(base, randomised):
    x, condition, net = inputs(), edges(), freeze(randomised(ControlNet(base), seed=1))

    def eps(way, w):
        return controlled(guidance.strengthened(base, way, w), [(net, condition, 1)])(*x)

    alone, both, found = base(*x), controlled(base, [(net, condition, 1)])(*x), []
    torch.testing.assert_close(eps("only", 1), both, rtol=1e-3, atol=1e-3)
    for way in guidance.WAYS:
        assert torch.equal(eps(way, 0), alone)
        found.append(eps(way, 3))
        torch.testing.assert_close(found[-1] - alone, 3 * (eps(way, 1) - alone), rtol=1e-2, atol=1e-2)
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(found, 2))


def rows_of_guidance(good):
    """Rows in which this share of images is right, and the Frechet distance to match; all others 0.7."""
    names = ["base", "both", *(f"{way} {w}" for way in guidance.WAYS for w in guidance.GUIDANCE)]
    rows = {}
    for name in names:
        for seed in (0, 1, 2):
            sign = -1 if name.startswith("formula") else 1
            share = good.get(name, 0.7) + 0.005 * (seed - 1) * sign
            rows[f"{name}-{seed}"] = scored(share, 0.01 * sign, edge_f1=0.9, frechet=10 - 9 * share)
    return rows


@pytest.mark.parametrize("good, word", [
    ({"formula 1.5": 0.9, "formula 3": 0.9}, "reproduced"), ({"formula 1.5": 0.9}, "mixed"),
    ({"paper 3": 0.9, "paper 6": 0.9}, "mixed"), ({"reduced 1.5": 0.9, "reduced 3": 0.9}, "mixed"),
    ({"reduced 3": 0.9}, "not reproduced"), ({}, "not reproduced"),
    ({"formula 1.5": 0.701, "formula 3": 0.701}, "not reproduced"),
    ({"both": 0.9, "formula 1.5": 0.8, "formula 3": 0.8}, "not reproduced"),
    ({"formula 1.5": 0.9, "only 1.5": 0.9, "formula 3": 0.9, "only 3": 0.95}, "not reproduced")])
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
