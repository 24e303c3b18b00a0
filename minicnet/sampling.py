"""Drawing: images from noise, prompts and any number of ControlNets."""

import functools
import itertools

import torch
from tqdm.auto import tqdm

from minicnet.controlnet import controlled
from minicnet.diffusion import guided, sample_ddim

CPU_CHUNK, GPU_CHUNK = 64, 1000  # images drawn at once: on a CPU more are no faster, on a GPU few keep it waiting


@torch.no_grad()
def generate(unet, schedule, prompt, x_T, controls=(), *, spans=None, guidance=1.0, steps=20, progress=False,
             hook=None):
    """Images (B, C, H, W) in [-1, 1] from noise x_T of that shape, of prompts (B, L), under any number of conditions.

    controls: triples (control_net, condition, scale), as for `controlled`: their residuals are summed. spans: for each
    of them the share of the steps (start, end) in which it acts, as for `spanned`; all unless given. guidance: the w
    of `guided`, which strengthens the prompt; the conditions go into both of its branches. steps: of DDIM.
    progress: show a bar. hook(t, x_t, x_0): called at each step, as by `sample_ddim`, with at most CPU_CHUNK or
    GPU_CHUNK images, the first ones first; what it raises ends the drawing. Raises ValueError for steps or spans that
    make no sense.
    """
    spans = [(0, 1)] * len(controls) if spans is None else spans
    size = CPU_CHUNK if x_T.device.type == "cpu" else GPU_CHUNK
    images = []
    with tqdm(total=len(x_T) * steps, desc="drawing", unit=" steps", disable=not progress, leave=False) as bar:
        def look(t, x_t, x_0):
            bar.update(len(x_t))
            if hook:
                hook(t, x_t, x_0)

        for start in range(0, len(x_T), size):
            part = slice(start, start + size)
            eps_model = spanned(unet, [(net, condition[part], scale) for net, condition, scale in controls], spans,
                                steps)
            eps_guided = guided(eps_model, (prompt[part],), (torch.zeros_like(prompt[part]),), guidance)
            images.append(sample_ddim(eps_guided, schedule, x_T[part], steps, hook=look))
    return torch.cat(images)


def spanned(unet, controls, spans, steps):
    """`controlled`, where a control of span (start, end) acts in step i of n if i / n >= start and (i + 1) / n <= end.

    Its i-th call is taken for step i. A short span may hold no step at all. Where no control acts, it is the base, bit
    for bit. Raises ValueError unless there is a span 0 <= start < end <= 1 for each control.
    """
    if len(spans) != len(controls) or not all(0 <= start < end <= 1 for start, end in spans):
        raise ValueError(f"spans must hold 0 <= start < end <= 1 for each of {len(controls)} controls, not {spans}")
    call = itertools.count()

    @functools.cache  # conditions are encoded once, not at every step
    def under(acting):
        return controlled(unet, [controls[k] for k in acting])

    def eps_model(x_t, t, prompt):
        i = next(call)
        acting = (k for k, (start, end) in enumerate(spans) if i / steps >= start and (i + 1) / steps <= end)
        return under(tuple(acting))(x_t, t, prompt)

    return eps_model


def seeded_noise(shape, seed, device="cpu"):
    """N(0, I) of a shape (B, C, H, W), the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
