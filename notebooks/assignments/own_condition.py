"""A condition of your own: what it is, how well images follow it, how a ControlNet learns it, how it joins with edges.

`condition` may be anything that keeps to its docstring; `measure` says how well an image does what the condition asks.
The other three are then the same for every condition. a4.ipynb calls all five.
"""

import torch

from minicnet.conditions import canny, mask
from minicnet.controlnet import ControlNet, controlled
from minicnet.sampling import generate


@torch.no_grad()
def condition(images):
    """Your condition: gray images (B, 1, H, W) in [-1, 1] -> maps (B, K, H, W) in [0, 1], float32, K as you like.

    Each map depends on its own image alone, and on nothing random. H and W are any even numbers from 8 on. Images stay
    as they are. Digits that look different have, as a rule, different maps; a map tells less than its image. It is
    none of those in conditions.py, nor one of them turned over, nor the image.
    """
    # Join the dots: every third pixel of every third row, where it lies on a stroke.
    maps = mask(images)
    grid = torch.zeros_like(maps)
    grid[..., 1::3, 1::3] = 1
    return maps * grid


@torch.no_grad()
def measure(images, maps):
    """How well images (B, 1, H, W) in [-1, 1] follow the maps (B, K, H, W) they were given: a float, 1 best, 0 worst.

    Images score 1 with their own maps, and less with those of other images. It is the mean over the images, each of
    which counts alike, and a number whatever images there are, be they blank.
    """
    # The dots of the image against those given: F1, as for edges; 1 where there are none in either.
    found = condition(images)
    both, all_dots = (found * maps).sum((1, 2, 3)), (found + maps).sum((1, 2, 3))  # (B,)
    return (2 * both / all_dots.clamp(min=1)).where(all_dots > 0, 1.0).mean().item()


def new_control(unet):
    """A fresh ControlNet for the base `unet`, to be trained on `condition`, however many channels K its maps have."""
    K = condition(torch.zeros(1, 1, 8, 8)).shape[1]
    return ControlNet(unet, condition_channels=K)


def training_model(unet):
    """What `train` trains a control with (training.py): a function eps_model(net, x_0, prompt).

    That returns the eps_model(x_t, t) of a batch: the locked base under net alone, at strength 1. net: a ControlNet,
    given the condition of x_0 (B, 1, H, W). prompt: (B, L).
    """

    def on_batch(net, x_0, prompt):
        under_net = controlled(unet, [(net, condition(x_0), 1)])
        return lambda x_t, t: under_net(x_t, t, prompt)

    return on_batch


def with_edges(unet, schedule, prompt, x_T, own, edges):
    """Draws under two conditions at once: images (B, 1, H, W) in [-1, 1] of prompts (B, L), from the noise x_T.

    Call `generate`, and leave all its other settings as they are.
    own, edges: (control_net, images, strength). `condition` of own's images is for own's net, `canny` of the other
    images, which may show something else, for the other net.
    """
    (own_net, own_images, own_strength), (edge_net, edge_images, edge_strength) = own, edges
    controls = [(own_net, condition(own_images), own_strength), (edge_net, canny(edge_images), edge_strength)]
    return generate(unet, schedule, prompt, x_T, controls)
