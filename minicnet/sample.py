"""Draw images with a trained base, and with its ControlNets under conditions from picture files:

    python -m minicnet.sample --base minicnet/weights/coloured/base.pt \\
                              --prompt "a red seven on navy paper"
    python -m minicnet.sample --control runs/mnist-edges/control.pt --condition digit.png --image \\
                              --prompt "a three"
    python -m minicnet.sample --control runs/a/control.pt --condition edges.png --scale 1 \\
                              --control runs/b/control.pt --condition colours.png --scale 0.7 \\
                              --end 0.5
"""

import os
import sys
from pathlib import Path

from minicnet import cli
from minicnet.checkpoints import check_writable, load_base, load_control
from minicnet.controlnet import Conditioning
from minicnet.data import NOUNS
from minicnet.data.prompts import attributes
from minicnet.devices import pick_device, place
from minicnet.errors import UserError
from minicnet.figures import MAX_IMAGES, figure_format, samples_sheet, save_figure
from minicnet.pictures import condition_from_image, condition_from_map, read_picture
from minicnet.sampling import generate, seeded_noise
from minicnet.words import DIGITS, tokenize


def parse_arguments(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--control", type=Path, action="append", default=[],
                        help="a control.pt; may be repeated")
    parser.add_argument("--condition", type=Path, action="append", default=[],
                        help="a picture file for each --control")
    parser.add_argument("--scale", type=cli.number(-100, 100), action="append", default=[],
                        help="strength of each --control; default 1")
    parser.add_argument("--start", type=cli.number(0, 1), action="append", default=[],
                        help="when each --control begins to act, from 0 (noise) to 1; default 0")
    parser.add_argument("--end", type=cli.number(0, 1), action="append", default=[],
                        help="when each --control stops acting, up to 1 (the image); default 1")
    parser.add_argument("--image", action="store_true",
                        help="the files are ordinary pictures: compute the conditions from them")
    parser.add_argument("--base", type=Path, help="a base.pt; default: beside the first control")
    parser.add_argument("--force", action="store_true",
                        help="accept a control that was trained for another base")
    parser.add_argument("--prompt", default="", help="what to draw, in words; may be left out")
    parser.add_argument("--guidance", type=cli.number(-100, 100), default=2.0,
                        help="strength of the prompt; 1 is no guidance, default 2")
    parser.add_argument("--control-guidance", type=cli.number(-100, 100), default=1.0,
                        help="strength of the conditions beyond --scale; 1 is no guidance, default")
    parser.add_argument("--steps", type=cli.whole_number(1, 1000), default=20, help="DDIM steps")
    parser.add_argument("--count", type=cli.whole_number(1, MAX_IMAGES), default=8,
                        help="how many images")
    parser.add_argument("--seed", type=cli.whole_number(0, 10**9), default=0)
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="a picture file")
    args = parser.parse_args(argv)
    if not args.control and not args.base:
        parser.error("give a --control, or at least a --base")
    if not args.control and (args.image or args.force or args.control_guidance != 1):
        parser.error("--image, --force and --control-guidance need a --control")
    args.scale = args.scale or [1.0] * len(args.control)
    args.start = args.start or [0.0] * len(args.control)
    args.end = args.end or [1.0] * len(args.control)
    for name in ("condition", "scale", "start", "end"):
        given = getattr(args, name)
        if len(given) != len(args.control):
            parser.error(f"there are {len(args.control)} --control, but {len(given)} --{name}: "
                         "give one for each")
    if os.path.realpath(args.out) in map(os.path.realpath, args.condition):
        parser.error(f"--out {args.out} would replace a --condition: choose another --out")
    for start, end in zip(args.start, args.end):
        if start >= end:
            parser.error(f"a control acts from --start to a later --end, not from {start:g} to "
                         f"{end:g}")
    return args


def main(args):
    figure_format(args.out)  # a file that cannot be written is refused before anything is drawn
    check_writable(args.out)
    title = f"{args.prompt or 'no prompt'}, guidance {args.guidance:g}"
    if args.control_guidance != 1:
        title += f", {args.control_guidance:g} on the control"
    save_figure(samples_sheet(draw(args), title), args.out)
    print(args.out)


def draw(args):
    """Draw images as the arguments describe them.

    Returns {heading: images (1, K, C, H, W) in [-1, 1]}: the map of each control, and "images".
    """
    device = pick_device(args.device)
    prompt = tokenize([args.prompt] * args.count).to(device)
    unet, base = load_base(args.base or args.control[0].parent / "base.pt")
    image_shape, dataset = base["image_shape"], base["dataset"]
    known = NOUNS.get(dataset.removeprefix("coloured-"), DIGITS)
    named = attributes(args.prompt)
    noun = named.get("digit") or named.get("label")
    if noun and noun not in known:
        print(f"note: this base was trained on {dataset!r:.60}, where no caption contains {noun!r}",
              file=sys.stderr)

    controls, columns = [], {}
    for path, picture_path, scale, start, end in zip(args.control, args.condition, args.scale,
                                                     args.start, args.end):
        net, control = load_control(path, unet, force=args.force)
        name, picture = control["condition"], read_picture(picture_path)
        if args.image:
            condition = condition_from_image(picture, name, image_shape)
        else:
            condition = condition_from_map(picture, name, control["condition_channels"],
                                           image_shape[1:])
        controls.append(Conditioning(place(net, device), condition.to(device), scale, start, end))
        number = f" ({len(controls)})" if len(args.control) > 1 else ""
        columns[f"{scale:g} x {name}{number}"] = condition[None] * 2 - 1

    x_T = seeded_noise((args.count, *image_shape), args.seed, device)
    try:
        images = generate(place(unet, device), unet.schedule, prompt, x_T, controls,
                          guidance=args.guidance, control_guidance=args.control_guidance,
                          steps=args.steps, progress=True)
    except ValueError as error:  # such as images that are not finite
        raise UserError(str(error)) from error
    return {**columns, "images": images[None]}


if __name__ == "__main__":
    cli.run(lambda: main(parse_arguments()))
