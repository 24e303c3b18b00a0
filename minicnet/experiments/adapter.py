"""Must a control run at every step? A T2I-Adapter reads the condition alone and runs once.

The arms are those of alternatives.py, with scribbles in place of edges: they leave more open, so it
could matter more what is drawn already, which an adapter does not see.
"""

from minicnet.experiments.claim import (
    BASE,
    REAL,
    Arm,
    Better,
    Claim,
    Fit,
    Headroom,
    Same,
    Use,
    main,
)
from minicnet.experiments.networks import Adapter

CONTROL = Fit(condition="scribble")

CLAIM = Claim(
    short="An adapter that runs once for an image controls as well as a ControlNet",
    quote="T2I-Adapter aligns internal knowledge in T2I models with external control signals. "
          "[...] As a contemporaneous work, ControlNet has a similar function and is widely used. "
          "However, it can be computationally expensive to run.",
    source="T2I-Adapter for SDXL, blog of Hugging Face, 2023", whose="another paper",
    dated="2026-11-30",
    testbeds=(("cifar10", "muon"), ("cifar10", "adamw"), ("digits", "adamw")),
    arms={"base": BASE, "control": Arm("ControlNet", (Use(CONTROL),)),
          "weak": Arm("ControlNet at strength 0.4", (Use(CONTROL, scale=0.4),)),
          "overdone": Arm("ControlNet at strength 3", (Use(CONTROL, scale=3.0),)),
          "adapter": Arm("T2I-Adapter", (Use(Fit(Adapter, "scribble")),)),
          "real": REAL},
    tests=(Same("adapter", "control", "strict_f1", within=0.03),
           Better("adapter", "control", "frechet", by=-0.5)),
    headroom={"strict_f1": Headroom("base", "real", bad="weak"),
              "frechet": Headroom("overdone", None, bad="overdone")},
    measures=("parameters", "label"),
    trainings=6,
    amendments=("the arm known to be bad was the base alone. Its photographs look no worse than "
                "those with control, so the Frechet distance could tell nothing. Now it is a "
                "control at strength 3, far beyond the strength of its training.",
                "on 2026-11-30, after a measurement with three trainings, whose intervals left a "
                "test open. There are six now, and the verdict is the same."),
    why="The authors of T2I-Adapter do not claim that it equals ControlNet. Theirs adds to the "
        "features that the encoder goes on with; ours adds to what the decoder reads.",
)

if __name__ == "__main__":
    main("adapter")
