"""Guidance without a prompt (section 3.4, Fig. 5): where does the condition belong, and how
strongly?

Without a prompt, guidance can only strengthen the condition. It can be in both branches, where w
does nothing. Or it is in eps_cond alone, at full strength (`only`), or with each residual weighted:

    formula    w_i = 64 / h_i, for us the largest map's height over h_i
    code       0.1 for the finest residual up to 1 for the middle, as in the authors' published code
"""

import functools

from minicnet.controlnet import Control, controlled
from minicnet.diffusion import guided
from minicnet.experiments.claim import (
    REAL,
    UNTOLD,
    Arm,
    Better,
    Claim,
    Headroom,
    Shipped,
    Use,
    main,
)


class Weighted:
    """A control whose residuals are weighted one by one."""

    def __init__(self, net, way):
        self.net, self.way = net, way
        self.encode = net.encode

    def __call__(self, x_t, t, prompt, hint):
        control = self.net(x_t, t, prompt, hint=hint)
        residuals = [*control.skips, control.middle]
        heights = [x.shape[-2] for x in residuals]  # the finest first
        last = len(heights) - 1
        weights = {"only": [1.0] * len(heights), "formula": [max(heights) / h for h in heights],
                   "code": [0.1 ** ((last - i) / last) for i in range(len(heights))]}[self.way]
        *skips, middle = (w * x for w, x in zip(weights, residuals))
        return Control(skips, middle)


def strengthened(unet, prompt, controls, way, w):
    """Return the eps_model in which guidance w strengthens the condition and not the prompt."""
    some = [control._replace(net=Weighted(control.net, way)) for control in controls]
    return guided(controlled(unet, prompt, some), controlled(unet, prompt), w)


def arm(title, **other):
    return Arm(title, (Use(Shipped("canny")),), prompt="none", **other)


CLAIM = Claim(
    short="Weights by resolution reduce guidance that is too strong without a prompt",
    quote="adding it to both ε_uc and ε_c will completely remove CFG guidance (Figure 5b); using "
          "only ε_c will make the guidance very strong (Figure 5c). [...] By reducing the CFG "
          "guidance strength, we can achieve the result shown in Figure 5d, and we call this CFG "
          "Resolution Weighting.",
    source="section 3.4", whose="the paper", dated="2026-11-29",
    testbeds=(("cifar10", "muon"), ("digits", "muon")),
    arms={
        "base": UNTOLD,
        "both": arm("in both branches"),
        **{f"{way} {w}": arm(f"{way}, w = {w}",
                             eps_model=functools.partial(strengthened, way=way, w=w))
           for way in ("only", "formula", "code") for w in (3, 6, 9)},
        "only 20": arm("only, w = 20",
                       eps_model=functools.partial(strengthened, way="only", w=20)),
        "real": REAL,
    },
    tests=(
        Better("formula 9", "only 9", "frechet", by=1.0),
        Better("formula 6", "only 6", "frechet", by=1.0),
        Better("formula 9", "only 9", "label", by=0.03),
        Better("formula 9", "both", "frechet"),
    ),
    headroom={"frechet": Headroom("only 20", None, bad="only 20"),
              "label": Headroom("base", "real", bad="base")},
    measures=("strict_f1",), images=480,
    amendments=("the arm known to be bad was the base alone. Its photographs look no worse than "
                "those with control, so the Frechet distance could tell nothing. Now it is the "
                "condition in eps_cond alone with w = 20, and there is no ceiling.",),
    why="At w = 3 the condition in eps_cond alone has a lower Frechet distance than the formula at "
        "any w, and follows the edges less closely. Our feature maps have two or three sizes where "
        "Stable Diffusion's have four, so the formula's weights differ less. The paper shows one "
        "image of each; the authors' default is w = 9.",
)

if __name__ == "__main__":
    main("guidance")
