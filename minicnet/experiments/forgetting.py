"""Does fine-tuning forget what a locked base keeps (sections 1 and 3.1)?

The base knows ten digits. It is taught edges with images of 0, 1 and 2 alone, and then drawn from
without edges: are the other seven digits still there? Without edges means strength 0, which for
fine-tuning is an empty map. It has seen empty maps: half of its training batches have one. What
fine-tuning loses on the digits that it was shown is subtracted, because that is not forgetting.
"""

from minicnet.experiments.claim import Arm, Better, Claim, Fit, Headroom, Use, main
from minicnet.experiments.networks import Concatenated, Unlocked

SHOWN, UNSEEN = (0, 1, 2), (3, 4, 5, 6, 7, 8, 9)
CONTROL = Fit(labels=SHOWN)
UNLOCKED = Fit(Unlocked, labels=SHOWN)
FINETUNED = Fit(Concatenated, labels=SHOWN, drop_prompts=0.1, drop_condition=0.5)
MILD = Fit(Concatenated, labels=SHOWN, drop_prompts=0.1, drop_condition=0.5, rate=0.1)


def without(title, fit, labels):
    return Arm(title, (Use(fit, scale=0.0),), labels=labels)


def given_edges(title, fit):
    return Arm(title, (Use(fit),), labels=UNSEEN)


CLAIM = Claim(
    short="Fine-tuning on narrow data forgets what a locked base keeps",
    quote="The direct finetuning or continued training of a large pretrained model with limited "
          "data may cause overfitting and catastrophic forgetting",
    source="section 1", whose="the paper", dated="2026-11-29",
    testbeds=(("digits", "adamw"), ("digits", "muon")),
    arms={
        "untold": Arm("base, no prompt", prompt="none", labels=UNSEEN),
        "base": Arm("base", labels=UNSEEN),
        "base, shown": Arm("base, digits shown", labels=SHOWN),
        "control": without("ControlNet", CONTROL, UNSEEN),
        "unlocked": without("decoder unlocked", UNLOCKED, UNSEEN),
        "finetuned": without("fine-tuned", FINETUNED, UNSEEN),
        "finetuned, shown": without("fine-tuned, digits shown", FINETUNED, SHOWN),
        "mild": without("fine-tuned at a tenth of the rate", MILD, UNSEEN),
        "control, edges": given_edges("ControlNet, with edges", CONTROL),
        "finetuned, edges": given_edges("fine-tuned, with edges", FINETUNED),
        "mild, edges": given_edges("fine-tuned at a tenth of the rate, with edges", MILD),
        "real": Arm("real images", real=True, labels=UNSEEN),
    },
    tests=(
        Better("base - base, shown", "finetuned - finetuned, shown", "label", by=0.1),
        Better("control", "finetuned", "label", by=0.1),
        Better("control", "mild", "label", by=0.02),
    ),
    headroom={"label": Headroom("untold", None, bad="untold")},
    measures=("strict_f1",),
    why="Fine-tuning at a tenth of the rate hardly learns the edges in as many steps, so the test "
        "that compares with it says little. Our base knows ten digits and nothing else. A base "
        "that knows more has more to lose, and a training that mixes other images in loses less. "
        "At strength 0 a ControlNet is the base, bit for bit, so it cannot forget.",
)

if __name__ == "__main__":
    main("forgetting")
