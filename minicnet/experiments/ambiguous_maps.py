"""Ambiguous maps (Fig. 11): one map, read in several ways.

The upper half of an edge map is erased, so that what is left may belong to several digits. Each map
is drawn eight times without a prompt. If the control interprets it, every drawing is a clear digit
and follows the lower half, and different drawings show different digits.
"""

import torch
import torch.nn.functional as F

from minicnet.conditions import canny
from minicnet.evaluation import edge_f1
from minicnet.experiments.claim import UNTOLD, Arm, Better, Claim, Headroom, Shipped, Use, main
from minicnet.experiments.measures import as_measures, per_image

DRAWINGS = 8  # of each map


def lower_half(edges):
    """Erase the upper half of edge maps (N, 1, H, W)."""
    return edges * (torch.arange(edges.shape[2])[:, None] >= edges.shape[2] // 2).to(edges)


@as_measures({"readings": "bits of entropy of the labels drawn from one map",
          "clear": "the classifier's confidence in the label",
          "half_f1": "strict edge-F1 in the lower half"})
def read(drawn):
    """Draw every map eight times, and ask the classifier what it sees."""
    several = torch.stack([drawn.draw(seed) for seed in range(DRAWINGS)])
    chances = torch.stack([drawn.classifier(images).softmax(1) for images in several])
    counted = F.one_hot(chances.argmax(2), 10).float().mean(0)  # (N, 10)
    entropy = -(counted * counted.clamp(min=1e-9).log2()).sum(1)
    half = drawn.real.shape[2] // 2
    given = canny(drawn.real)[:, :, half:]
    return {"readings": entropy.tolist(), "clear": chances.amax(2).mean(0).tolist(),
            "half_f1": per_image(edge_f1, several[0][:, :, half:], given, tolerance=0)}


CLAIM = Claim(
    short="A control interprets an ambiguous map, each time as something clear",
    quote="If the input is ambiguous and the user does not mention object contents in prompts, the "
          "results look like the model tries to interpret input shapes.",
    source="Fig. 11", whose="the paper", dated="2026-11-29", testbeds=(("digits", "muon"),),
    arms={
        "base": UNTOLD,
        "full": Arm("full edge map", (Use(Shipped("canny")),), prompt="none"),
        "half": Arm("lower half of the edge map", (Use(Shipped("canny"), change=lower_half),),
                    prompt="none"),
    },
    tests=(Better("half", "full", "readings", by=0.2), Better("half", "full", "clear", by=-0.05),
           Better("half", "base", "half_f1", by=0.1)),
    headroom={"half_f1": Headroom("base", 1.0, bad="base")}, images=48,
    why="The base alone, without a map, is read in many ways, too, and an empty upper half also "
        "says that there are no edges. The paper shows six readings of one map. Digits are few "
        "and alike; what the map of a scene leaves open is harder to count.",
)

if __name__ == "__main__":
    main("ambiguous_maps")
