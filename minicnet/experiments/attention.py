"""Where does each place of the picture look among the words (not of the paper)?

The base of coloured digits draws prompts such as "a red seven on navy paper", with guidance 2. At each step the weights
of its cross-attention say how much each of 7x7 places takes from each word. Once the picture is drawn, it is known
which places have ink. So: how much do places with ink take from a word, over what places without take?

The maps say where a word is looked at, not what that does. The words have a second way in, their sum.
"""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from minicnet.colours import DARK, LIGHT
from minicnet.conditions import mask
from minicnet.diffusion import guided, sample_ddim
from minicnet.experiments.judging import across_seeds, in_figures
from minicnet.experiments.lab import main
from minicnet.sampling import seeded_noise
from minicnet.unet import CrossAttention
from minicnet.words import DIGITS, tokenize, with_article

BASE = "coloured"
PLACES = {"ink": 1, "digit": 2, "paper": 4}  # of the words in the prompts here
CLAIM = ("Not of the paper: places look at the words that concern them, those with ink at the words for ink and digit, "
         "those without at the word for paper.")

WHY_HERE = ("The prompts name things that lie apart in the picture, and 7x7 places look at them. In a larger base, "
            "with more layers and heads, single ones may look elsewhere.")


def prompts_of_all_words(count):
    """So many prompts, in which every digit and every colour has its turn."""
    return [with_article(f"{list(LIGHT)[i % len(LIGHT)]} {DIGITS[i % 10]} on {list(DARK)[i % len(DARK)]} paper")
            for i in range(count)]


@torch.no_grad()
def watched(lab, prompts, seed):
    """Draws B prompts, and returns the images and {t: (x_t, x_0, maps (B, L, 7, 7))}, means over layers and heads."""
    tokens, weights, seen = tokenize(prompts).to(lab.device), [], {}
    layers = [module for module in lab.unet.modules() if isinstance(module, CrossAttention)]
    hooks = [layer.register_forward_hook(lambda layer, given, made: weights.append(layer.weights(given[0], given[2])))
             for layer in layers]

    def look(t, x_t, x_0):
        maps = torch.stack(weights)[:, : len(prompts)].mean((0, 2)).mT  # (B, L, places), of those with their prompt
        side = round(maps.shape[-1] ** 0.5)
        seen[t] = x_t, x_0, maps.unflatten(-1, (side, side))
        weights.clear()

    eps_model = guided(lab.unet, (tokens,), (torch.zeros_like(tokens),), w=2)
    x_T = seeded_noise((len(prompts), *lab.test_images.shape[1:]), seed, lab.device)
    images = sample_ddim(eps_model, lab.schedule, x_T, lab.sampling_steps, hook=look)
    for hook in hooks:
        hook.remove()
    return images, seen


def shares(lab, seed):
    """How much places with ink take from each word, over what places without take: at each step, and their mean."""
    images, seen = watched(lab, prompts_of_all_words(lab.images), seed)
    maps = torch.stack([maps for _, _, maps in seen.values()])  # (steps, B, L, 7, 7), from noise to image
    ink = F.adaptive_avg_pool2d(mask(images), maps.shape[-1])[:, 0] > 0.3  # (B, 7, 7)
    row = {}

    def taken(word, places):
        """The mean over the places (B, 7, 7) at each step. word: (steps, B, 7, 7)."""
        return (word * places).sum((1, 2, 3)) / places.sum().clamp(min=1)

    for kind, place in PLACES.items():
        over_time = taken(maps[:, :, place], ink) / taken(maps[:, :, place], ~ink).clamp(min=1e-6)
        row[kind] = over_time.mean().item()
        row[f"{kind}, over time"] = over_time.tolist()
    return row


def run(lab):
    for seed in lab.seeds:
        lab.row(f"words-{seed}", shares, lab, seed)


def verdict(rows):
    """Reproduced if, for every seed, places with ink take more from the words for ink and digit, and less from the
    word for paper, by a tenth at least. Mixed if that holds of one of the three words."""
    right = [min(across_seeds(rows, "words", "ink")) > 1.1, min(across_seeds(rows, "words", "digit")) > 1.1,
             max(across_seeds(rows, "words", "paper")) < 0.9]
    word = "reproduced" if all(right) else "mixed" if any(right) else "not reproduced"
    told = ", ".join(f"from the word for {kind} {in_figures(rows, 'words', kind, 2)} times" for kind in PLACES)
    return word, f"places with ink take {told} what places without take"


def figure(rows, lab):
    prompt = "a red seven on navy paper"
    _, seen = watched(lab, [prompt], lab.seeds[0])
    words, times = prompt.split(), list(seen)
    times = [*times[:: max(1, len(times) // 4)][:4], times[-1]]
    fig = Figure(figsize=(10, 1.15 * len(times) + 3.2), layout="constrained")
    above, below = fig.subfigures(2, 1, height_ratios=[1.15 * len(times), 2.7])
    axes = above.subplots(len(times), len(words) + 2)
    for line, t in zip(axes, times):
        x_t, x_0, maps = (x[0].cpu() for x in seen[t])
        for ax, image in zip(line, (x_t, x_0)):
            ax.imshow(((image.permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy(), interpolation="nearest")
        for ax, places in zip(line[2:], maps):
            picture = ax.imshow(places.numpy(), vmin=0, vmax=0.5)
        line[0].set_ylabel(f"t = {t}", fontsize=11)
        for ax in line:
            ax.set(xticks=[], yticks=[])
    for ax, heading in zip(axes[0], ["$x_t$", "guess of $x_0$", *words]):
        ax.set_title(heading, fontsize=11)
    above.colorbar(picture, ax=axes, shrink=0.6, label="share taken from the word")
    ax = below.subplots()
    for kind, color in zip(PLACES, ("tab:red", "tab:green", "tab:blue")):
        for row in rows.values():
            curve = row[f"{kind}, over time"]
            ax.plot([i / (len(curve) - 1) for i in range(len(curve))], curve, color=color, label=f"the word for {kind}")
    ax.axhline(1, color="tab:gray", linestyle=":")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(*zip(*dict(zip(labels, zip(handles, labels))).values()), fontsize=10, ncols=3, loc="lower center")
    ax.set_title("What places with ink take from a word over what the others take, a line for each seed", fontsize=11)
    ax.set_xlabel("from noise (0) to image (1)")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    return fig


if __name__ == "__main__":
    main("attention")
