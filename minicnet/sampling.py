"""Drawing images from noise, prompts and any number of controls."""

import torch
from tqdm.auto import tqdm

from minicnet.controlnet import Conditioning, controlled
from minicnet.diffusion import guided, sample_ddim

CPU_CHUNK = 64  # images drawn at once: more are no faster on a CPU
GPU_CHUNK = 1000


@torch.no_grad()
def generate(unet, schedule, prompt, x_T, controls=(), *, guidance=1.0, control_guidance=1.0,
             steps=20, progress=False, hook=None):
    """Draw images (B, C, H, W) in [-1, 1] from noise x_T of that shape and prompts (B, L), by DDIM.

    schedule: that of the network, unet.schedule. controls: Conditionings or triples (net,
    condition, scale), whose residuals are summed. A condition of batch 1 serves all images.
    guidance: the w of `guided`; the conditions go into both predictions, so it strengthens the
    prompt only. It runs everything a second time at each step. control_guidance strengthens the
    conditions in the same way, and runs the base alone once more. Ours: the paper does not have it.
    steps: of DDIM. progress: show a bar. hook(t, x_t, x_0): called at each step, as by
    `sample_ddim`, for each chunk of images in turn.

    Raises ValueError if batches or steps do not fit, or if images are not finite, which happens
    with an extreme scale or guidance.
    """
    B = len(x_T)
    controls = [_for_batch(Conditioning(*control), B) for control in controls]
    size = CPU_CHUNK if x_T.is_cpu else GPU_CHUNK
    images = []
    with tqdm(total=B * steps, desc="drawing", unit=" steps", disable=not progress,
              leave=False) as bar:
        def report(t, x_t, x_0):
            bar.update(len(x_t))
            if hook:
                hook(t, x_t, x_0)

        for start in range(0, B, size):
            part = slice(start, start + size)
            chunk = [control._replace(condition=control.condition[part]) for control in controls]
            eps_cond, eps_uncond = (
                guided(controlled(unet, words, chunk), controlled(unet, words), control_guidance)
                for words in (prompt[part], torch.zeros_like(prompt[part])))
            eps_model = guided(eps_cond, eps_uncond, guidance)
            images.append(sample_ddim(eps_model, schedule, x_T[part], steps, hook=report))
    images = torch.cat(images)
    if not images.isfinite().all():
        raise ValueError("the images are not finite numbers: use a smaller scale or guidance")
    return images


def _for_batch(control, B):
    """Return the Conditioning with its condition expanded to B images."""
    count = len(control.condition)
    if count not in (1, B):
        raise ValueError(f"a condition must have batch 1 or {B}, as the noise has, not {count}")
    if not 0 <= control.start < control.end <= 1:
        raise ValueError("a control acts from start to end, with 0 <= start < end <= 1, not from "
                         f"{control.start:g} to {control.end:g}")
    return control._replace(condition=control.condition.expand(B, -1, -1, -1))


def seeded_noise(shape, seed, device="cpu"):
    """Return N(0, I) of a shape (B, C, H, W), the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
