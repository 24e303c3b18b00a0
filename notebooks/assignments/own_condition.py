"""A condition of your own: how to measure it, how to train for it, and how to add it to edges.

`condition` may be anything that keeps to its docstring, and `measure` says how well images follow
it. The other three functions are the same for every condition. a4.ipynb calls all five.
"""

import torch

from minicnet.conditions import canny, mask
from minicnet.controlnet import ControlNet, controlled
from minicnet.data.digits import draw_digits
from minicnet.sampling import generate


@torch.no_grad()
def condition(images):
    """Return your condition of gray images (B, 1, H, W) in [-1, 1], as maps (B, K, H, W) in [0, 1].

    The maps are float32, and K is as large as you like. H and W are any even numbers from 8 on. A
    map depends on its own image alone and on nothing random, and the images themselves stay as they
    are. Digits that look different usually have different maps. A map leaves something open that
    its image shows. It is neither the image nor one of the maps in conditions.py, even shifted,
    inverted or thickened.
    """
    # Join the dots: every third pixel of every third row, where it lies on a stroke.
    maps = mask(images)
    grid = torch.zeros_like(maps)
    grid[..., 1::3, 1::3] = 1
    return maps * grid


@torch.no_grad()
def measure(images, maps):
    """Measure how well images (B, 1, H, W) in [-1, 1] follow the maps (B, K, H, W) they were given.

    Returns a float, the mean over the images: 1 is best and 0 is worst. Images score 1 with their
    own maps, and less with the maps of other images. The result is a number whatever the images
    show, even if they are blank.
    """
    # F1 of the dots in the image and the dots that were given; 1 if there are none in either, where
    # it is 0 / 0.
    found = condition(images)
    both, total = (found * maps).sum((1, 2, 3)), (found + maps).sum((1, 2, 3))  # (B,)
    return (2 * both / total).nan_to_num(1.0).mean().item()


def new_control(unet):
    """Return a new ControlNet for the base `unet`, to be trained on `condition`.

    It must fit however many channels K the maps have.
    """
    K = condition(draw_digits(1)[0]).shape[1]
    return ControlNet(unet, condition_channels=K)


def training_model(unet):
    """Return the function eps_model_of(net, x_0, prompt) with which a `Trainer` trains a control.

    eps_model_of returns the eps_model(x_t, t) of a batch: the locked base under `net` alone, at
    strength 1. net: a ControlNet, which reads the condition of x_0 (B, 1, H, W). prompt: (B, L).
    """
    def eps_model_of(net, x_0, prompt):
        return controlled(unet, prompt, [(net, condition(x_0), 1)])

    return eps_model_of


def with_edges(unet, schedule, prompt, x_T, own, edges):
    """Draw images (B, 1, H, W) in [-1, 1] of prompts (B, L) from noise x_T, under two conditions.

    own, edges: (control_net, images, strength). The own net reads `condition` of its images, and
    the other net reads `canny` of its images, which may show something else. Call `generate`, and
    leave all its other settings as they are.
    """
    own_net, own_images, own_strength = own
    edge_net, edge_images, edge_strength = edges
    controls = [(own_net, condition(own_images), own_strength),
                (edge_net, canny(edge_images), edge_strength)]
    return generate(unet, schedule, prompt, x_T, controls)
