"""Draw images with a trained base and its ControlNet, from any picture of edges:

    python -m minicnet.sample --run runs/mnist-edges --edges drawing.png --label 3
    python -m minicnet.sample --run runs/mnist-edges --edges photo.jpg --canny --guidance 2 --out digits.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.image import imread

from minicnet.checkpoints import CheckpointError, load_base, load_control
from minicnet.conditions import canny
from minicnet.diffusion import NoiseSchedule, guided, sample_ddim
from minicnet.figures import samples_sheet, save_figure
from minicnet.training import TrainingError, pick_device, whole_number


@torch.no_grad()
def generate(unet, schedule, label, x_T, controls=(), *, guidance=1.0, steps=20, progress=False):
    """Images (B, C, H, W) in [-1, 1] from noise x_T of that shape, of labels (B,), under any number of conditions.

    controls: triples (control_net, condition, scale). Their residuals are summed, each times its scale. Conditions are
    encoded once, not at every step. guidance: the w of `guided`, which strengthens the label; the conditions go into
    both of its branches.
    """
    images = []
    for chunk in torch.arange(len(x_T), device=x_T.device).split(250):  # so that memory does not grow with B
        hints = [net.encode(condition[chunk]) for net, condition, _ in controls]

        def eps_model(x_t, t, label, *hints):
            parts = [scale * net(x_t, t, label, hint=hint) for (net, _, scale), hint in zip(controls, hints)]
            return unet(x_t, t, label, control=sum(parts) if parts else None)

        null = torch.full_like(label[chunk], unet.null_label)
        eps_guided = guided(eps_model, (label[chunk], *hints), (null, *hints), guidance)
        images.append(sample_ddim(eps_guided, schedule, x_T[chunk], steps, progress=progress))
    return torch.cat(images)


def read_picture(path):
    """An image file as gray values (1, 1, H, W) in [0, 1]. Raises ValueError if it cannot be read as an image."""
    try:
        pixels = imread(path)  # (H, W), (H, W, 3) or (H, W, 4), whole numbers, or floats in [0, 1]
    except Exception as error:  # what a damaged file makes of the reader cannot be foreseen
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot read {path} as an image: {reason}") from error
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
    pixels = torch.tensor(pixels / white).float()
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]  # on white paper
    return (pixels.mean(-1) if pixels.ndim == 3 else pixels)[None, None]


def edges_from_picture(picture, size):
    """Lines drawn on a ground of the other brightness, (1, 1, H, W) in [0, 1], as edges (1, 1, *size) of {0, 1}.

    The picture is stretched to `size`. Shrinking keeps the brightest pixel of each field, or thin lines would fade.
    """
    if picture.median() > 0.5:  # dark lines on white paper
        picture = 1 - picture
    return (F.adaptive_max_pool2d(picture / picture.max().clamp(min=1e-6), size) > 0.5).float()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/mnist-edges"), help="run folder of train_mnist_edges.py")
    parser.add_argument("--edges", type=Path, required=True, help="an image file: thin outlines, or see --canny")
    parser.add_argument("--canny", action="store_true", help="the file is a picture whose edges are to be found first")
    parser.add_argument("--label", type=int, help="what to draw, 0 to 9; without it the edges alone decide")
    parser.add_argument("--scale", type=float, default=1.0, help="strength of the control: 0 is the base alone")
    parser.add_argument("--guidance", type=float, default=1.0, help="strength of the label: 1 is no guidance")
    parser.add_argument("--steps", type=int, default=30, help="DDIM steps")
    parser.add_argument("--count", type=int, default=8, help="how many images")
    parser.add_argument("--seed", type=whole_number, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    args = parser.parse_args(argv)
    try:
        draw(args)
    except (CheckpointError, TrainingError, ValueError) as error:
        sys.exit(f"error: {error}")


def draw(args):
    device = pick_device(args.device)
    unet, checkpoint = load_base(args.run / "base.pt")
    control_net, _ = load_control(args.run / "control.pt", unet)
    unet, control_net = unet.to(device), control_net.to(device)
    name, T = checkpoint["schedule"]
    schedule = getattr(NoiseSchedule, name)(T).to(device)

    channels, *size = checkpoint["image_shape"]
    picture = read_picture(args.edges)
    if args.canny:
        resized = F.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False)
        edges = canny(resized.clamp(0, 1) * 2 - 1)
    else:
        edges = edges_from_picture(picture, size)

    if args.label is not None and not 0 <= args.label < unet.null_label:
        raise ValueError(f"--label must lie in 0 .. {unet.null_label - 1}, or be left out")
    if args.count < 1:
        raise ValueError("--count must be at least 1")
    label = torch.full((args.count,), unet.null_label if args.label is None else args.label, device=device)
    x_T = torch.randn(args.count, channels, *size, generator=torch.Generator().manual_seed(args.seed)).to(device)
    condition = edges.to(device).expand(args.count, -1, -1, -1)
    images = generate(unet, schedule, label, x_T, [(control_net, condition, args.scale)], guidance=args.guidance,
                      steps=args.steps, progress=True)
    title = f"label {'none' if args.label is None else args.label}, scale {args.scale:g}, guidance {args.guidance:g}"
    save_figure(samples_sheet({"edges": edges[None] * 2 - 1, "images": images[None]}, title), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
