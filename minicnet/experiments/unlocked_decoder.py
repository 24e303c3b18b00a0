"""What users ask: should the decoder be unlocked (`sd_locked = False`; lllyasviel/ControlNet issues
356 and 608 contradict each other)?"""

from minicnet.experiments.claim import BASE, REAL, Arm, Better, Claim, Fit, Headroom, Use, main
from minicnet.experiments.networks import Unlocked

CLAIM = Claim(
    short="After 400 steps, an unlocked decoder follows conditions a little better, and the base "
          "is harmed",
    quote="setting `sd_locked = False` turns out to improve model performance significantly (608) "
          "[...] it turns out that such unlock does not have influence to the results (356) [...] "
          "This option is DANGEROUS! If your dataset is not good enough, this may downgrade the "
          "capability of your SD model. (docs/train.md)",
    source="lllyasviel/ControlNet issues 608 and 356, docs/train.md", whose="users",
    dated="2026-11-29",
    testbeds=(("cifar10", "adamw"), ("digits", "adamw"), ("digits", "muon")),
    arms={
        "base": BASE,
        "locked": Arm("decoder locked", (Use(Fit()),)),
        "weak": Arm("decoder locked, strength 0.4", (Use(Fit(), scale=0.4),)),
        "unlocked": Arm("decoder unlocked", (Use(Fit(Unlocked)),)),
        "slow": Arm("decoder unlocked, a fifth of the rate", (Use(Fit(Unlocked, rate=0.2)),)),
        "real": REAL,
    },
    tests=(Better("unlocked", "locked", "strict_f1", by=0.01),
           Better("locked", "unlocked", "loss_without", by=0.001)),
    headroom={"strict_f1": Headroom("base", "real", bad="weak")}, measures=("label", "frechet"),
    why="After 400 steps control is half learned, so this is a matter of speed. Our data are those "
        "that the base was trained on; on other data an unlocked decoder may gain and lose more. "
        "Its rate counts, too: at a fifth of it, the control also learns slowly.",
)

if __name__ == "__main__":
    main("unlocked_decoder")
