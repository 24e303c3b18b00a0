"""What users ask: when must a control act (start and end of control; diffusers issue 3758)?"""

from minicnet.experiments.claim import (
    REAL,
    Arm,
    Better,
    Claim,
    Headroom,
    Same,
    Shipped,
    Use,
    main,
)

SPANS = {"whole": (0, 1), "three quarters": (0, 0.75), "first half": (0, 0.5),
         "second half": (0.5, 1), "first quarter": (0, 0.25)}

CLAIM = Claim(
    short="The first half of sampling decides the layout, so a control may end early",
    quote="How can I control the starting point of the controlnet in official pipeline?",
    source="diffusers issue 3758", whose="users", dated="2026-11-29",
    testbeds=(("cifar10", "muon"), ("digits", "muon"), ("coloured", "muon")),
    arms={
        "base": Arm("base alone", guidance=2.0),
        **{name: Arm(f"from {start:.0%} to {end:.0%} of sampling",
                     (Use(Shipped("canny"), start=start, end=end),), guidance=2.0)
           for name, (start, end) in SPANS.items()},
        "real": REAL,
    },
    tests=(Better("first half", "second half", "strict_f1", by=0.05),
           Same("three quarters", "whole", "strict_f1", within=0.03)),
    headroom={"strict_f1": Headroom("base", "real", bad="base")}, measures=("frechet", "label"),
    trainings=1,
    why="Fractions are of the timesteps visited, spread evenly; other samplers spend their steps "
        "elsewhere.",
)

if __name__ == "__main__":
    main("control_span")
