"""Draw images with a trained base and its ControlNets, one or several at once, each under a condition from a file:

    python -m minicnet.sample --control runs/mnist-edges/control.pt --condition digit.png --image --label 3 --guidance 2
    python -m minicnet.sample --control runs/a/control.pt --control runs/b/control.pt \\
                              --condition edges.png --condition colours.png --scale 1 --scale 0.7
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from tqdm.auto import tqdm

from minicnet.checkpoints import CheckpointError, load_base, load_control
from minicnet.conditions import CONDITIONS
from minicnet.diffusion import NoiseSchedule, guided, sample_ddim
from minicnet.figures import samples_sheet, save_figure
from minicnet.parallel import cores
from minicnet.training import TrainingError, pick_device, whole_number

CPU_CHUNK, GPU_CHUNK = 64, 1000  # images drawn at once: what stays in a core's cache, and what keeps a GPU busy


def generate(unet, schedule, label, x_T, controls=(), *, guidance=1.0, steps=20, progress=False):
    """Images (B, C, H, W) in [-1, 1] from noise x_T of that shape, of labels (B,), under any number of conditions.

    controls: triples (control_net, condition, scale), scale a number. Their residuals are summed, each times its scale.
    Conditions are encoded once, not at every step. guidance: the w of `guided`, which strengthens the label; the
    conditions go into both of its branches. The images are drawn in parts, on two cores by two threads.
    """
    size = CPU_CHUNK if x_T.device.type == "cpu" else GPU_CHUNK
    bar = tqdm(total=len(x_T) * steps, desc="drawing", unit=" steps", disable=not progress, leave=False)

    @torch.no_grad()
    def draw_chunk(chunk):
        hints = [net.encode(condition[chunk]) for net, condition, _ in controls]

        def eps_model(x_t, t, label, *hints):
            parts = [scale * net(x_t, t, label, hint=hint) for (net, _, scale), hint in zip(controls, hints)]
            return unet(x_t, t, label, control=sum(parts) if parts else None)

        null = torch.full_like(label[chunk], unet.null_label)
        eps_guided = guided(eps_model, (label[chunk], *hints), (null, *hints), guidance)
        return sample_ddim(eps_guided, schedule, x_T[chunk], steps, hook=lambda *_: bar.update(len(chunk)))

    with bar, cores(x_T.device, len(x_T)) as (shares, spread):
        parts = shares * math.ceil(len(x_T) / shares / size)
        return torch.cat(list(spread(draw_chunk, torch.arange(len(x_T), device=x_T.device).tensor_split(parts))))


def read_picture(path):
    """An image file as RGB values (1, 3, H, W) in [0, 1]. Raises ValueError if it cannot be read as an image."""
    try:
        pixels = imread(path)  # (H, W), (H, W, 3) or (H, W, 4), whole numbers, or floats in [0, 1]
    except Exception as error:  # what a damaged file makes of the reader cannot be foreseen
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot read {path} as an image: {reason}") from error
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
    pixels = torch.tensor(pixels / white).float()
    if pixels.ndim == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    if pixels.shape[2] == 4:
        pixels = pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]  # on white paper
    return pixels.permute(2, 0, 1)[None].clamp(0, 1)


def condition_from_image(picture, name, image_shape):
    """The condition called `name` of an ordinary picture (1, 3, H, W) in [0, 1], shrunk to image_shape (C, H', W')."""
    channels, *size = image_shape
    image = F.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    if channels == 1:
        image = image.mean(1, keepdim=True)
    return CONDITIONS[name](image * 2 - 1)


def condition_from_map(picture, name, channels, size):
    """A picture (1, 3, H, W) in [0, 1] that is itself a condition called `name`, as (1, channels, *size) in [0, 1].

    Edges, scribbles and masks become 0 or 1, and may be drawn dark on white. For lines, shrinking keeps the brightest
    pixel of each field, or thin ones would fade.
    """
    if channels == 1:
        picture = picture.mean(1, keepdim=True)
    if name in ("colour", "depth"):
        return F.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    if picture.median() > 0.5:  # dark on white paper
        picture = 1 - picture
    shrink = F.adaptive_avg_pool2d if name == "mask" else F.adaptive_max_pool2d
    return (shrink(picture / picture.max().clamp(min=1e-6), size) > 0.5).float()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--control", type=Path, action="append", required=True, help="a control.pt; may be repeated")
    parser.add_argument("--condition", type=Path, action="append", required=True, help="an image file per --control")
    parser.add_argument("--scale", type=float, action="append", help="strength per --control, 1 unless given")
    parser.add_argument("--image", action="store_true",
                        help="the files are ordinary pictures, of which the conditions are to be found first")
    parser.add_argument("--base", type=Path, help="base.pt; unless given, that beside the first control")
    parser.add_argument("--force", action="store_true", help="take a control that was trained for another base")
    parser.add_argument("--label", type=int, help="what to draw, 0 to 9; without it the conditions alone decide")
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
    except KeyboardInterrupt:
        sys.exit("\nstopped")


def draw(args):
    device = pick_device(args.device)
    scales = args.scale or [1.0] * len(args.control)
    for flag, values in (("--condition", args.condition), ("--scale", scales)):
        if len(values) != len(args.control):
            raise ValueError(f"there are {len(args.control)} --control but {len(values)} {flag}: give one for each")
    unet, checkpoint = load_base(args.base or args.control[0].with_name("base.pt"))
    unet, image_shape = unet.to(device), checkpoint["image_shape"]
    name, T = checkpoint["schedule"]
    schedule = getattr(NoiseSchedule, name)(T).to(device)
    if args.label is not None and not 0 <= args.label < unet.null_label:
        raise ValueError(f"--label must lie in 0 .. {unet.null_label - 1}, or be left out")
    if args.count < 1:
        raise ValueError("--count must be at least 1")

    controls, columns = [], {}
    for i, (control_path, picture_path, scale) in enumerate(zip(args.control, args.condition, scales), start=1):
        control_net, about = load_control(control_path, unet, force=args.force)
        name, channels, picture = about["condition"], about["condition_channels"], read_picture(picture_path)
        condition = condition_from_image(picture, name, image_shape) if args.image else \
            condition_from_map(picture, name, channels, image_shape[1:])
        columns[f"{name}, scale {scale:g}" + f" ({i})" * (len(scales) > 1)] = condition[None] * 2 - 1
        controls.append((control_net.to(device), condition.to(device).expand(args.count, -1, -1, -1), scale))

    label = torch.full((args.count,), unet.null_label if args.label is None else args.label, device=device)
    x_T = torch.randn(args.count, *image_shape, generator=torch.Generator().manual_seed(args.seed)).to(device)
    images = generate(unet, schedule, label, x_T, controls, guidance=args.guidance, steps=args.steps, progress=True)
    title = f"label {'none' if args.label is None else args.label}, guidance {args.guidance:g}"
    save_figure(samples_sheet({**columns, "images": images[None]}, title), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
