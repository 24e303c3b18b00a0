"""Are the masks found again in the images that were drawn from them (the paper's Table 2)?

Images are drawn from the masks of test images, without guidance. Then the masks of these images are held against the
given ones: intersection over union. Three nets read the masks, on the same images and for as many steps:

    control     ControlNet
    lite        ControlNet-lite: new convolutions where ControlNet copies the base's blocks (zero_convolution.py)
    scratch     a new UNet, without any base, that reads the mask as one more channel of its input (concatenated.py)

A step from scratch costs about as much as one of ControlNet, one of ControlNet-lite about two thirds. The floor is the
base alone, given the same prompts. Real images are the ceiling.

The paper has ADE20K's segmentations of 150 classes, finds them again with OneFormer, which errs, and takes its models
from scratch (VQGAN, LDM) from elsewhere. Our masks have two classes, and `mask` finds them again without error.
"""

from matplotlib.figure import Figure

from minicnet.conditions import mask
from minicnet.controlnet import ControlNet
from minicnet.evaluation import mask_iou
from minicnet.experiments.concatenated import ConcatenatedUNet, ConditionItself
from minicnet.experiments.judging import across_seeds, in_figures, interval, mean
from minicnet.experiments.lab import blocks, control_eps, main
from minicnet.experiments.plots import columns_of_images, grouped_bars
from minicnet.experiments.zero_convolution import ControlNetLite
from minicnet.unet import UNet

BASE = "coloured"
CLAIM = ("Segmentations are found again in what ControlNet draws from them (IoU 0.35) better than with ControlNet-lite "
         "(0.32) and with models trained from scratch (LDM 0.31, VQGAN 0.21); real images have 0.58 (Table 2).")
WHY_HERE = ("A mask of a digit is the digit, but for its colours: reading it needs little of what a base knows, where "
            "150 classes of things may need much.")
NAMES = {"base": "base alone", "scratch": "from scratch", "lite": "ControlNet-lite", "control": "ControlNet"}
HEADINGS = {method: name.replace(" ", "\n").replace("-", "-\n") for method, name in NAMES.items()}


def trained(lab, method, seed):
    """The base to draw with, and what controls it, after training on masks. In "base", nothing controls it."""
    if method == "base":
        return lab.unet, None
    make, parts, other = {
        "scratch": (lambda: ConcatenatedUNet(UNet(**lab.unet.settings)), lambda net: (net, ConditionItself()),
                    {"drop_prompts": 0.1}),  # of the prompts, as when the base was trained
        "lite": (lambda: ControlNetLite(lab.unet), lambda net: (lab.unet, net), {}),
        "control": (lambda: ControlNet(lab.unet), lambda net: (lab.unet, net), {})}[method]
    net, _ = lab.trained(f"mask-{method}", seed, make, control_eps(parts, mask), shared="reconstruction", **other)
    return parts(net)


def draw(lab, method, seed, prompt, guidance=1.0):
    """Images of prompts (B, L) from the masks of the first B test images."""
    unet, control = trained(lab, method, seed)
    controls = [(control, mask(lab.test_images[: len(prompt)]), 1)] if control else []
    return lab.draw(prompt, controls, unet=unet, seed=seed, guidance=guidance)


def run(lab):
    masks = mask(lab.test_images)

    def measured(method, seed):
        images = draw(lab, method, seed, lab.test_prompts)
        return {"mask_iou": mask_iou(images, masks), "mask_iou_blocks": blocks(mask_iou, images, masks)}

    lab.row(f"real-{lab.seeds[0]}", lambda: {"mask_iou": mask_iou(lab.test_images, masks)})
    for seed in lab.seeds:
        for method in NAMES:
            lab.row(f"{method}-{seed}", measured, method, seed)


def verdict(rows):
    """Reproduced if ControlNet's IoU is clearly above that of both others, mixed if above that of one of them.

    Clearly: the interval of the difference lies above 0.
    """
    leads = {method: interval(rows, "control", method, "mask_iou") for method in ("lite", "scratch")}
    ahead = sum(lead.low > 0 for lead in leads.values())
    texts = ", ".join(f"{lead} on {NAMES[method]}" for method, lead in leads.items())
    iou = {method: in_figures(rows, method, "mask_iou") for method in NAMES}
    return ("not reproduced", "mixed", "reproduced")[ahead], (
        f"the IoU of masks found again is {iou['control']} with ControlNet, {iou['lite']} with ControlNet-lite, "
        f"{iou['scratch']} from scratch. The base alone has {iou['base']}, real images "
        f"{mean(rows, 'real', 'mask_iou'):.3f}. ControlNet's lead is {texts}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[1, 1.5])
    bars = [across_seeds(rows, method, "mask_iou") for method in NAMES]
    grouped_bars(left, HEADINGS.values(), {"": bars},
                 "IoU of the masks found again")
    left.axhline(mean(rows, "real", "mask_iou"), color="black", linestyle="--", label="real images")
    left.set_ylim(0, 1.2)
    left.legend(fontsize=9, loc="upper left")
    few, seed = slice(0, 5), lab.seeds[0]
    columns = {"real": lab.test_images[few], "its\nmask": mask(lab.test_images[few]) * 2 - 1}
    columns |= {name: draw(lab, method, seed, lab.test_prompts[few]) for method, name in HEADINGS.items()}
    columns_of_images(right, columns, fontsize=9)
    return fig


if __name__ == "__main__":
    main("reconstruction")
