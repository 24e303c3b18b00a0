"""Draw the README's strip: the same noise on its way to an image, with a control and without.

    python -m minicnet.publish.strip
"""

import torch

from minicnet import cli
from minicnet.checkpoints import WEIGHTS, load_base, load_control
from minicnet.conditions import canny
from minicnet.data import captions, load_dataset
from minicnet.figures import samples_sheet, save_figure
from minicnet.publish.report import PAGE
from minicnet.sampling import generate, seeded_noise
from minicnet.words import tokenize

TEST_IMAGE = 2
EVERY = 3  # steps of sampling between two pictures


def strip():
    """Return the Figure: edges, then x_t at every third step, and at last the image."""
    unet, _ = load_base(WEIGHTS / "coloured" / "base.pt")
    net, _ = load_control(WEIGHTS / "coloured" / "canny.pt", unet)
    real = load_dataset("coloured-drawn", "test")[0][TEST_IMAGE, None]
    caption = captions("coloured-drawn", "test")[TEST_IMAGE]
    edges, x_T = canny(real), seeded_noise(real.shape, 0)

    def drawn(controls):
        seen = []
        image = generate(unet, unet.schedule, tokenize([caption]), x_T, controls, guidance=2,
                         hook=lambda t, x_t, x_0: seen.append(x_t))
        return torch.cat([*seen[::EVERY], image]).clamp(-1, 1)

    both = torch.stack([drawn([(net, edges, 1)]), drawn([])])
    maps = torch.stack([edges, torch.zeros_like(edges)]) * 2 - 1
    return samples_sheet({"edges": maps, "from noise to image": both}, f'"{caption}", guidance 2',
                         rows=("with control", "without"))


def main():
    cli.parser(__doc__, device=False).parse_args()
    path = PAGE.with_name("strip.png")
    save_figure(strip(), path)
    print(path)


if __name__ == "__main__":
    cli.run(main)
