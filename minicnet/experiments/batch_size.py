"""Batch size (the authors' notes): larger batches up to sudden convergence, or more steps after it?

All arms see 12,800 images. The learning rate is the same and constant under AdamW. The largest
batch ends soon after control takes hold; `short` shows what as few steps of a small batch reach.
"""

from minicnet.experiments.claim import BASE, REAL, Arm, Better, Claim, Fit, Headroom, Use, main

# Images in a batch, and steps as a factor on the usual 400 (AdamW) or 300 (Muon).
BATCHES = {"small": (8, 4), "middle": (32, 1), "large": (64, 0.5), "short": (8, 0.5)}

CLAIM = Claim(
    short="For as many images, larger batches are better than more steps",
    quote="you should consider larger batch size rather than more training steps [...] (1) train "
          "3k steps, sudden converge, then train 87k steps. (2) 30x gradient accumulation, train "
          "3k steps (90k real computation steps), then sudden converge. In my experiments, (2) is "
          "usually better than (1).",
    source="docs/train.md", whose="the authors' notes", dated="2026-11-29",
    testbeds=(("digits", "adamw"), ("digits", "muon"), ("cifar10", "adamw"), ("cifar10", "muon")),
    arms={
        "base": BASE,
        **{name: Arm(f"batches of {size}, {steps:g} times the usual steps",
                     (Use(Fit(batch_size=size, steps=steps)),))
           for name, (size, steps) in BATCHES.items()},
        "real": REAL,
    },
    tests=(Better("large", "small", "strict_f1", by=0.02),
           Better("large", "small", "loss", by=0.001)),
    headroom={"strict_f1": Headroom("base", "real", bad="short"),
              "loss": Headroom("base", None, bad="short")},
    measures=("frechet",),
    why="The authors compare batches of 4 and more than 100 at a rate of 1e-5. Here, too, the rate "
        "is the same for every batch; larger batches may bear a higher one. Under Muon, 300 steps "
        "take the place of 400.",
)

if __name__ == "__main__":
    main("batch_size")
