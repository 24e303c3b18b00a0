"""Dropped prompts (section 3.3): does a control trained without prompts read more off its
condition?"""

from minicnet.experiments.claim import REAL, UNTOLD, Arm, Better, Claim, Fit, Headroom, Use, main

CLAIM = Claim(
    short="Dropping half of the training prompts helps a control to read its condition",
    quote="we randomly replace 50% text prompts c_t with empty strings. This approach increases "
          "ControlNet's ability to directly recognize semantics in the input conditioning images "
          "(e.g., edges, poses, depth, etc.) as a replacement for the prompt.",
    source="section 3.3", whose="the paper", dated="2026-11-29",
    testbeds=(("cifar10", "adamw"), ("cifar10", "muon"), ("digits", "adamw"), ("digits", "muon")),
    arms={
        "base": UNTOLD,
        **{f"{part:.0%}": Arm(f"{part:.0%} dropped",
                              (Use(Fit(condition="scribble", drop_prompts=part)),), prompt="none")
           for part in (0.0, 0.5, 1.0)},
        "real": REAL,
    },
    tests=(Better("50%", "0%", "label", by=0.02),),
    headroom={"label": Headroom("base", "real", bad="base")},
    measures=("strict_f1", "frechet"),
    why="One training prompt in five is shortened here, and on digits half of these do not name "
        "the digit, so the arm without dropping is not quite without. CIFAR-10's prompts always "
        "name the object.",
)

if __name__ == "__main__":
    main("prompt_dropping")
