"""Are the masks found again in the images drawn from them (Table 2)?

The paper finds segmentations again with OneFormer, which errs. So do we: a small network learns to
segment real images, and it is shown the drawn ones. All draw from captions with guidance 2. The
model from scratch gets the training of base and control together.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from minicnet.conditions import mask
from minicnet.controlnet import freeze
from minicnet.experiments.claim import REAL, Arm, Better, Claim, Fit, Headroom, Use, main
from minicnet.experiments.measures import as_measure
from minicnet.experiments.networks import Lite, from_scratch

SCRATCH = Fit(from_scratch, "mask", base_steps=1, batch_size=64, drop_prompts=0.1)


@functools.cache
def segmenter(lab):
    """Train a small convolutional network to find the masks of real images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(lab.train_images.shape[1], 16, 3, padding=1)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(16, 1, 1)).to(lab.device)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(lab.classifier_steps[lab.base]):
        images = lab.train_images[step * 32 % (len(lab.train_images) - 32) :][:32]
        F.binary_cross_entropy_with_logits(net(images), mask(images)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return freeze(net)


@as_measure("IoU of the mask found again")
def segmented(drawn):
    found = segmenter(drawn.lab)(drawn.images) > 0
    given = mask(drawn.real).bool()
    both, either = ((op(found, given)).flatten(1).sum(1) for op in
                    (torch.logical_and, torch.logical_or))
    return (both / either.clamp(min=1)).tolist()


def arm(title, *fits, scale=1.0):
    uses = tuple(Use(fit, scale) for fit in fits)
    return Arm(title, uses, prompt="caption", guidance=2.0)


ARMS = {
    "base": arm("base alone"),
    "scratch": arm("from scratch", SCRATCH),
    "lite": arm("ControlNet-lite", Fit(Lite, "mask")),
    "control": arm("ControlNet", Fit(condition="mask")),
    "overdone": arm("ControlNet at strength 3", Fit(condition="mask"), scale=3.0),
    "real": REAL,
}

CLAIM = Claim(
    short="Masks are found again better than with ControlNet-lite or from scratch",
    quote="Evaluation of semantic segmentation label reconstruction (ADE20K) with Intersection "
          "over Union (IoU ↑).",
    source="Table 2", whose="the paper", dated="2026-11-29",
    testbeds=(("digits", "muon"), ("coloured", "muon")), arms=ARMS,
    tests=(Better("control", "lite", "segmented", by=0.02),
           Better("control", "scratch", "segmented", by=0.02)),
    headroom={"segmented": Headroom("base", "real", bad="base")},
    paper={("real", "segmented"): "0.58 ± 0.10", ("control", "segmented"): "0.35 ± 0.14",
           ("lite", "segmented"): "0.32 ± 0.12", ("scratch", "segmented"): "LDM 0.31 ± 0.09"},
    amendments=("coloured digits decided. Their base trains for 10,000 steps now, so that three "
                "networks from scratch would take hours. Digits decide instead. This was changed "
                "before anything of this claim was measured on the present weights.",),
    why="The best arm is so near to the ceiling that nothing is decided; without this check, both "
        "tests would fail. The paper's spread over images is larger than its differences, and its "
        "PITI, which is not from scratch, reaches 0.26. A mask of one digit needs less knowledge "
        "than 150 classes of things.",
)

if __name__ == "__main__":
    main("reconstruction")
