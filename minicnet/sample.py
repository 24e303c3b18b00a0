"""Draw images with a trained base and its ControlNets, one or several at once, each under a condition from a file:

    python -m minicnet.sample --control runs/mnist-edges/control.pt --condition digit.png --image --prompt "a three"
    python -m minicnet.sample --control runs/a/control.pt --condition edges.png --scale 1 \\
                              --control runs/b/control.pt --condition colours.png --scale 0.7 --until 0.5
    python -m minicnet.sample --base minicnet/weights/coloured/base.pt --prompt "a red seven on navy paper"
"""

import sys
from pathlib import Path

from minicnet import cli
from minicnet.checkpoints import load_base, load_control, schedule_of
from minicnet.data import NOUNS
from minicnet.devices import pick_device
from minicnet.figures import figure_format, samples_sheet, save_figure
from minicnet.pictures import condition_from_image, condition_from_map, read_picture
from minicnet.sampling import generate, seeded_noise
from minicnet.words import CLOTHES, DIGITS, THINGS, tokenize


def parse_arguments(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--control", type=Path, action="append", default=[], help="a control.pt; may be repeated")
    parser.add_argument("--condition", type=Path, action="append", default=[], help="an image file per --control")
    parser.add_argument("--scale", type=cli.finite, action="append", help="strength per --control, 1 unless given")
    parser.add_argument("--from", dest="start", type=cli.finite, action="append", metavar="FROM",
                        help="share of the steps after which a --control begins to act, 0 unless given")
    parser.add_argument("--until", dest="end", type=cli.finite, action="append", metavar="UNTIL",
                        help="share of the steps up to which a --control acts, 1 unless given")
    parser.add_argument("--image", action="store_true",
                        help="the files are ordinary pictures, of which the conditions are to be found first")
    parser.add_argument("--base", type=Path, help="base.pt; unless given, that beside the first control")
    parser.add_argument("--force", action="store_true", help="take a control that was trained for another base")
    parser.add_argument("--prompt", default="", help="what to draw, in words; without them the conditions decide")
    parser.add_argument("--guidance", type=cli.finite, default=2.0, help="strength of the prompt: 1 is no guidance")
    parser.add_argument("--steps", type=cli.positive, default=20, help="DDIM steps")
    parser.add_argument("--count", type=cli.positive, default=8, help="how many images")
    parser.add_argument("--seed", type=cli.whole_number, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    args = parser.parse_args(argv)
    if not args.control and not args.base:
        parser.error("give a --control, or at least a --base")
    args.scale, args.start, args.end = (given or [default] * len(args.control) for given, default in
                                        ((args.scale, 1.0), (args.start, 0.0), (args.end, 1.0)))
    given = {"--control": args.control, "--condition": args.condition, "--scale": args.scale, "--from": args.start,
             "--until": args.end}
    if len(set(map(len, given.values()))) > 1:
        parser.error(f"there are {', '.join(f'{len(some)} {flag}' for flag, some in given.items())}: "
                     "give one of each for each control")
    for start, end in zip(args.start, args.end):
        if not 0 <= start < end <= 1:
            parser.error(f"a control acts --from a share of the steps --until a later one, both from 0 to 1, "
                         f"not from {start:g} until {end:g}")
        if not any(start <= i / args.steps and (i + 1) / args.steps <= end for i in range(args.steps)):
            parser.error(f"no step lies between {start:g} and {end:g} of {args.steps}: take more --steps")
    for path in args.control:
        if path.is_dir():
            parser.error(f"--control {path} is a folder: name the file in it, such as {path / 'control.pt'}")
    try:
        figure_format(args.out)
    except ValueError as error:
        parser.error(error)
    return args


def unheard(prompt, dataset):
    """The nouns of a prompt that no caption of the dataset holds."""
    known = NOUNS.get(dataset.removeprefix("coloured-"), DIGITS)
    return [word for word in prompt.lower().split() if word in (*DIGITS, *CLOTHES, *THINGS) and word not in known]


def main(args):
    device = pick_device(args.device)
    prompt = tokenize([args.prompt] * args.count).to(device)
    unet, checkpoint = load_base(args.base or args.control[0].with_name("base.pt"))
    schedule, image_shape = schedule_of(checkpoint).to(device), checkpoint["image_shape"]
    dataset = checkpoint.get("dataset", "drawn")
    for word in unheard(args.prompt, dataset):
        print(f"note: this base was trained on {dataset}, and never heard of {word!r}", file=sys.stderr)
    if args.steps > len(schedule):
        raise ValueError(f"--steps must be at most {len(schedule)}")

    controls, columns = [], {}
    for i, (control_path, picture_path, scale) in enumerate(zip(args.control, args.condition, args.scale), start=1):
        net, about = load_control(control_path, unet, force=args.force)
        name, picture = about["condition"], read_picture(picture_path)
        if args.image:
            condition = condition_from_image(picture, name, image_shape)
        else:
            condition = condition_from_map(picture, name, about["condition_channels"], image_shape[1:])
        columns[f"{scale:g} x {name}" + f" ({i})" * (len(args.scale) > 1)] = condition[None] * 2 - 1
        controls.append((net.to(device), condition.to(device).expand(args.count, -1, -1, -1), scale))

    x_T = seeded_noise((args.count, *image_shape), args.seed, device)
    images = generate(unet.to(device), schedule, prompt, x_T, controls, spans=list(zip(args.start, args.end)),
                      guidance=args.guidance, steps=args.steps, progress=True)
    title = f"{args.prompt or 'no prompt'}, guidance {args.guidance:g}"
    save_figure(samples_sheet({**columns, "images": images[None]}, title), args.out)
    print(args.out)


if __name__ == "__main__":
    cli.run(main, parse_arguments())
