"""Several conditions (section 3.4, Fig. 6): do controls that were trained apart work by adding?

Edges say where and colours say which colour. The two controls come with the base and were trained
apart; depth, a third, is trained here. The quote names linear interpolation as what is not needed,
so the sum is compared with the average of the two, and with other strengths.
"""

from minicnet.experiments.claim import (
    BASE,
    REAL,
    Arm,
    Better,
    Claim,
    Fit,
    Headroom,
    Shipped,
    Use,
    main,
)

EDGES, COLOUR = Shipped("canny"), Shipped("colour")
DEPTH = Fit(condition="depth", optimizer="muon")


def mixed_up(conditions):
    """Give each image the condition of the image before."""
    return conditions.roll(1, 0)


def both(edges, colours, **other):
    return (Use(EDGES, scale=edges), Use(COLOUR, scale=colours, **other))


CLAIM = Claim(
    short="The controls of several conditions are added, without weights",
    quote="we can directly add the outputs of the corresponding ControlNets to the Stable "
          "Diffusion model (Figure 6). No extra weighting or linear interpolation is necessary "
          "for such composition.",
    source="section 3.4", whose="the paper", dated="2026-11-29",
    testbeds=(("cifar10", "muon"), ("coloured", "muon")),
    arms={
        "base": BASE,
        "edges": Arm("edges", (Use(EDGES),)),
        "colours": Arm("colours", (Use(COLOUR),)),
        "sum": Arm("edges + colours", both(1, 1)),
        "average": Arm("average of the two", both(0.5, 0.5)),
        "stronger": Arm("1.5 edges + 1.5 colours", both(1.5, 1.5)),
        "colours led": Arm("0.5 edges + 1.5 colours", both(0.5, 1.5)),
        "contrary": Arm("edges + colours of another image", both(1, 1, change=mixed_up)),
        "depth": Arm("depth", (Use(DEPTH),)),
        "three": Arm("edges + colours + depth", (*both(1, 1), Use(DEPTH))),
        "real": REAL,
    },
    tests=(
        Better("sum", "edges", "strict_f1", by=-0.03),
        Better("sum", "colours", "colours_missed", by=-0.01),
        Better("sum", "average", "strict_f1", by=0.02),
        Better("three", "sum", "strict_f1", by=-0.03),
    ),
    headroom={"strict_f1": Headroom("base", "real", bad="base"),
              "colours_missed": Headroom("base", "real", bad="contrary")},
    measures=("frechet",),
    why="Weights are not needed, but at strength 1.5 both "
        "conditions are followed more closely. Edges, "
        "colours and depth are made of the same image and agree. Conditions that contradict one "
        "another may need weights.",
)

if __name__ == "__main__":
    main("many_conditions")
