"""Conditions without a prompt (section 4.1, Fig. 7): does a control recognise what it is given?

The bar is what the base can draw at all: the same sampler, told by a prompt what to draw.
"""

from minicnet.experiments.claim import (
    REAL,
    UNTOLD,
    Arm,
    Better,
    Claim,
    Fit,
    Headroom,
    Shipped,
    Use,
    main,
)

CONTROLS = {"edges": Shipped("canny"), "scribble": Fit(condition="scribble"),
            "mask": Fit(condition="mask"), "depth": Fit(condition="depth"),
            "colours": Shipped("colour")}

CLAIM = Claim(
    short="Without a prompt, a control recognises what its condition shows",
    quote="Figure 7 shows our results with various conditions without prompts, where the "
          "ControlNet robustly interprets content semantics in diverse input conditioning images.",
    source="section 4.1", whose="the paper", dated="2026-11-29",
    testbeds=(("coloured", "muon"), ("cifar10", "muon")),
    arms={
        "base": UNTOLD,
        "told": Arm("base, given the label as prompt"),
        **{name: Arm(name, (Use(control),), prompt="none") for name, control in CONTROLS.items()},
        "real": REAL,
    },
    tests=tuple(Better(name, "told", "label", by=-0.05)
                for name in ("edges", "scribble", "mask", "depth")),
    headroom={"label": Headroom("base", "real", bad="base")},
    measures=("frechet", "strict_f1"),
    why="Edges and colours come from the shipped networks, and the controls for scribbles, masks "
        "and depth were trained for 300 steps. The paper shows pictures and names no number. Here "
        "an image holds one object; the maps of scenes say more, and are more ambiguous. Coarse "
        "colours hardly say what is shown, so they are not judged.",
)

if __name__ == "__main__":
    main("no_prompt")
