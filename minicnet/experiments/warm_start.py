"""What users ask: does it help to continue from a control for another condition
(lllyasviel/ControlNet issues 233 and 427)?"""

from dataclasses import replace

from minicnet.experiments.claim import BASE, REAL, Arm, Better, Claim, Fit, Headroom, Use, main

SCRIBBLE = Fit(condition="scribble")
HALF = replace(SCRIBBLE, steps=0.5)

CLAIM = Claim(
    short="Scribbles are learned faster from a control for edges or masks than from the base's "
          "copy",
    quote="instead of training from scratch I want to train on top of an existing ControlNet model "
          "(say Canny). How would I go about doing that?",
    source="lllyasviel/ControlNet issue 233", whose="users",
    dated="2026-11-29", testbeds=(("digits", "adamw"), ("cifar10", "adamw"), ("digits", "muon")),
    arms={
        "base": BASE,
        "copy": Arm("from the base's copy", (Use(SCRIBBLE),)),
        "half": Arm("from the copy, half the steps", (Use(HALF),)),
        "edges": Arm("from a control for edges, half the steps",
                     (Use(replace(HALF, start=Fit())),)),
        "mask": Arm("from a control for masks, half the steps",
                    (Use(replace(HALF, start=Fit(condition="mask"))),)),
        "real": REAL,
    },
    tests=(Better("edges", "half", "strict_f1", by=0.02),
           Better("mask", "half", "strict_f1", by=0.02)),
    headroom={"strict_f1": Headroom("base", "real", bad="base")}, measures=("frechet", "loss"),
    why="The lead that was found is about as large as the lead that is asked for. Scribbles, "
        "edges and masks have one channel and are alike. A condition of another kind may not "
        "profit.",
)

if __name__ == "__main__":
    main("warm_start")
