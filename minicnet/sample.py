"""Draw images with a trained base and any number of ControlNets. From the command line:

    python -m minicnet.sample --run runs/mnist-edges --edges drawing.png --label 3
    python -m minicnet.sample --run runs/mnist-edges --edges photo.jpg --canny --guidance 2 --out photo-digits.png
"""


import torch

from minicnet.diffusion import guided, sample_ddim


@torch.no_grad()
def generate(unet, schedule, label, x_T, controls=(), *, guidance=1.0, steps=20, progress=False):
    """Images (B, C, H, W) in [-1, 1] from noise x_T of that shape, of labels (B,), under any number of conditions.

    controls: triples (control_net, condition, scale). Their residuals are summed, each times its scale. Conditions are
    encoded once, not at every step. guidance: w of `guided`, which strengthens the label; the conditions go into both
    of its branches.
    """
    images = []
    for chunk in torch.arange(len(x_T)).split(200):  # so that memory does not grow with the number of images
        hints = [net.encode(condition[chunk]) for net, condition, _ in controls]

        def eps_model(x_t, t, label, *hints):
            parts = [scale * net(x_t, t, label, hint=hint) for (net, _, scale), hint in zip(controls, hints)]
            return unet(x_t, t, label, control=sum(parts) if parts else None)

        null = torch.full_like(label[chunk], unet.null_label)
        eps_guided = guided(eps_model, (label[chunk], *hints), (null, *hints), guidance)
        images.append(sample_ddim(eps_guided, schedule, x_T[chunk], steps, progress=progress))
    return torch.cat(images)
