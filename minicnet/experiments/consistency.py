"""A rival (Li et al. 2024, "ControlNet++", arXiv 2404.07987): should training compare the condition of what is drawn?

The usual loss compares noise. ControlNet++ adds a consistency loss: guess x_0 from the noisy x_t in one step, compute
the condition of the guess, compare that with the condition given. The condition must be differentiable. Our weakest
control, colour, is: its map is made of the means over a grid of 4 x 4 cells. So the net for colour that comes with the
repository is trained further, from the same batches, in three ways:

    plain          with the usual loss only
    up to 200      and with the consistency loss where t <= 200 of 1000, as in that paper: there x_0 is guessed well
    up to 800      and with the consistency loss where t <= 800: colours are decided where there is still much noise

The weight of the consistency loss is the same for both. But training draws late timesteps more often: 4% of its t are
at most 200, and 64% at most 800.

A net may learn to please the grid it is trained on. So images are also measured on another one, whose cells are moved
by half a cell, down and to the right: against the real images whose colours were given.
"""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from minicnet.conditions import colour
from minicnet.controlnet import trainable_copy
from minicnet.evaluation import colour_error
from minicnet.experiments import composition
from minicnet.experiments.judging import across_seeds, interval, mean
from minicnet.experiments.lab import blocks, control_eps, main
from minicnet.experiments.plots import columns_of_images, grouped_bars

BASE = "coloured"
CLAIM = ("Not of the paper: a consistency loss on the condition of the x_0 that is guessed in one step makes images "
         "follow their condition better (ControlNet++, Li et al. 2024).")
WHY_HERE = ("Means over a grid are linear in x_0, so this consistency loss is the usual error, seen through a coarse "
            "grid: it makes errors in colour count more, and adds no knowledge. That paper's conditions are found by "
            "networks, which add theirs.")
LONGEST = {"plain": None, "up to 200": 200, "up to 800": 800}
SHARE = 1 / 3  # of the usual steps
WEIGHT = 10  # of the consistency loss


def grid(images):
    """The means over 4 x 4 cells that `colour` is made of, in [0, 1]: (B, C, 4, 4)."""
    return F.adaptive_avg_pool2d((images + 1) / 2, 4)


def moved_grid(images):
    """The means over 3 x 3 cells of the same size, each of which lies on a corner of four of `grid`: (B, C, 3, 3)."""
    side = images.shape[-1] // 4
    return F.avg_pool2d((images[..., side // 2 :, side // 2 :] + 1) / 2, side)


def moved_error(images, real):
    """`colour_error` on the moved grid."""
    return (moved_grid(images) - moved_grid(real)).abs().mean().item()


def feedback(schedule, guess, x_t, t, x_0, longest):
    """The gradient of the consistency loss by the guess of the noise (B, C, H, W)."""
    guess = guess.detach().float().requires_grad_()
    error = (grid(schedule.predict_x0(x_t, guess, t)) - grid(x_0)).square().flatten(1).mean(1)  # (B,)
    return torch.autograd.grad(WEIGHT * (error * (t <= longest)).mean(), guess)[0]


def consistent(lab, longest):
    """The eps_model to train a net for colour with. Training knows one loss: where its gradient reaches the guess, that
    of the consistency loss is added to it. longest: the last t with feedback; None is no feedback."""
    usual = control_eps(lambda net: (lab.unet, net), colour)

    def eps_model(net, x_0, prompt):
        eps = usual(net, x_0, prompt)

        def with_feedback(x_t, t):
            guess = eps(x_t, t)
            added = feedback(lab.schedule, guess, x_t, t, x_0, longest)
            guess.register_hook(lambda gradient: gradient + added)
            return guess

        return with_feedback

    return usual if longest is None else eps_model


def trained(lab, name, seed):
    steps = max(1, int(SHARE * lab.steps))
    return lab.trained(name, seed, lambda: trainable_copy(composition.nets(lab)[1]), consistent(lab, LONGEST[name]),
                       steps=steps)[0]


def draw(lab, name, seed, count=None):
    """The first test images' colours and digits, drawn by the base alone, or under the net before or after training."""
    nets = [] if name == "base" else [trained(lab, name, seed)] if name in LONGEST else [composition.nets(lab)[1]]
    given = colour(lab.test_images[:count])
    return lab.draw(lab.test_prompts[:count], [(net, given, 1) for net in nets], seed=seed, guidance=1.0)


def run(lab):
    real = lab.test_images
    given = colour(real)

    def measured(name, seed):
        images = draw(lab, name, seed)
        return {**lab.score(images, lab.test_labels), "own": colour_error(images, given),
                "own_blocks": blocks(colour_error, images, given), "moved": moved_error(images, real),
                "moved_blocks": blocks(moved_error, images, real)}

    for seed in lab.seeds:
        for name in ("base", "before", *LONGEST):
            lab.row(f"{name}-{seed}", measured, name, seed)


def verdict(rows):
    """Reproduced if, with feedback up to t = 200 as in that paper, the error on the moved grid is clearly below that of
    plain training as long, and label accuracy not clearly so. Mixed if that holds of feedback up to t = 800 only."""
    def gain(name, measure):
        return interval(rows, name, "plain", measure)

    def helps(name):
        return gain(name, "moved").high < 0 <= gain(name, "label_accuracy").high

    def of_all(measure, digits):
        return ", ".join(f"{name} {mean(rows, name, measure):.{digits}f}" for name in ("base", "before", *LONGEST))

    word = "reproduced" if helps("up to 200") else "mixed" if helps("up to 800") else "not reproduced"
    moved, own, read = ([f"{gain(name, measure):+.4f}" for name in ("up to 200", "up to 800")]
                        for measure in ("moved", "own", "label_accuracy"))
    return word, (
        f"the colour error on the moved grid was {of_all('moved', 4)}. Against plain training, feedback up to t = 200 "
        f"changed it by {moved[0]}, up to t = 800 by {moved[1]}. On the grid trained on, it was {own[0]} and {own[1]}. "
        f"Label accuracy was {of_all('label_accuracy', 3)}; feedback changed it by {read[0]} and {read[1]}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 6.4), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[1, 1.2])
    names = ("before", *LONGEST)
    grouped_bars(left, names, {title: [across_seeds(rows, name, measure) for name in names] for measure, title in
                               {"own": "grid trained on", "moved": "moved grid"}.items()},
                 f"Colour error (base alone, moved grid: {mean(rows, 'base', 'moved'):.2f})")
    left.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.05))
    real, seed = lab.test_images[:8], lab.seeds[0]
    columns = {"real": real, "colour\ngiven": colour(real) * 2 - 1,
               **{name.replace(" to ", " to\n"): draw(lab, name, seed, len(real)) for name in ("base", *names)}}
    columns_of_images(right, columns, fontsize=9)
    return fig


if __name__ == "__main__":
    main("consistency")
