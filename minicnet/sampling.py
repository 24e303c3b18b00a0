"""Drawing: images from noise, prompts and any number of ControlNets."""

import torch
from tqdm.auto import tqdm

from minicnet.controlnet import controlled
from minicnet.diffusion import guided, sample_ddim

CPU_CHUNK, GPU_CHUNK = 64, 1000  # images drawn at once: what stays in a core's cache, and what keeps a GPU busy


@torch.no_grad()
def generate(unet, schedule, prompt, x_T, controls=(), *, guidance=1.0, steps=20, progress=False):
    """Images (B, C, H, W) in [-1, 1] from noise x_T of that shape, of prompts (B, L), under any number of conditions.

    controls: triples (control_net, condition, scale), as for `controlled`: their residuals are summed. guidance: the w
    of `guided`, which strengthens the prompt; the conditions go into both of its branches. steps: of DDIM.
    """
    size = CPU_CHUNK if x_T.device.type == "cpu" else GPU_CHUNK
    images = []
    with tqdm(total=len(x_T) * steps, desc="drawing", unit=" steps", disable=not progress, leave=False) as bar:
        for start in range(0, len(x_T), size):
            part = slice(start, start + size)
            eps_model = controlled(unet, [(net, condition[part], scale) for net, condition, scale in controls])
            eps_guided = guided(eps_model, (prompt[part],), (torch.zeros_like(prompt[part]),), guidance)
            images.append(sample_ddim(eps_guided, schedule, x_T[part], steps,
                                      hook=lambda t, x_t, x_0: bar.update(len(x_t))))
    return torch.cat(images)


def seeded_noise(shape, seed, device="cpu"):
    """N(0, I) of a shape (B, C, H, W), the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
