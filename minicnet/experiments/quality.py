"""What does control cost, or gain, in quality of the images and adherence to the prompt (the paper's Table 3)?

Images are drawn from masks of test images and from these images' captions, such as "a red seven on navy paper", with
guidance. They are judged by their Frechet distance from real images, and by whether digit, ink and paper are those of
the prompt. The mask may tell the digit, too, but not the colours. The nets are those of reconstruction.py: ControlNet,
ControlNet-lite, and a model trained from scratch that reads the mask beside x_t. All were trained for as many steps.

The base alone knows no masks. A control may gain on it in Frechet distance because it is given shapes of real images,
which are among those that the distance is measured from.

The paper has FID, a CLIP-score and an aesthetic score. For the last one there is nothing here. FID compares with FID
only, so what is compared is which method is better.
"""

import torch
from matplotlib.figure import Figure

from minicnet.adherence import prompt_accuracy
from minicnet.conditions import mask
from minicnet.data import captions
from minicnet.evaluation import frechet_distance
from minicnet.experiments.judging import across_seeds, clearly_better, in_figures, interval
from minicnet.experiments.lab import blocks, main
from minicnet.experiments.plots import columns_of_images, grouped_bars
from minicnet.experiments.reconstruction import HEADINGS, NAMES, draw
from minicnet.words import tokenize

BASE = "coloured"
CLAIM = ("From segmentations, ControlNet draws better images (FID 15.3) than ControlNet-lite (17.9) and models trained "
         "from scratch (25.4 and more), and follows the prompt as well as the base alone (CLIP-score 0.26, Table 3).")
WHY_HERE = ("The base was trained on these very images, and for many times as long as the model from scratch. A "
            "control starts from there: that is what it is for. A model from scratch that trains as long as base and "
            "control together may draw as well.")
SAID = ("digit", "ink", "paper", "all")
NEAR = 0.02  # a share of prompts that is less than this below another is as good


def run(lab):
    texts = captions(lab.dataset, "test")[: lab.images]
    prompt = tokenize(texts).to(lab.device)

    def adherence(images, places):
        return prompt_accuracy(images, [texts[i] for i in places.tolist()], lab.classifier)

    def judged(images, shown):
        """Frechet distance of `images`, and whether `shown` are what their prompts say."""
        places = torch.arange(len(shown))
        return {"frechet": frechet_distance(lab.classifier, images, lab.reference_images), **adherence(shown, places),
                "all_blocks": blocks(lambda *block: adherence(*block)["all"], shown, places)}

    def measured(method, seed):
        images = draw(lab, method, seed, prompt, guidance=2.0)
        return judged(images, images)

    # Real images: the test images are a part of what the distance is measured from, so it is told of training images.
    lab.row(f"real-{lab.seeds[0]}", judged, lab.train_images[: lab.images], lab.test_images)
    for seed in lab.seeds:
        for method in NAMES:
            lab.row(f"{method}-{seed}", measured, method, seed)


def verdict(rows):
    """Reproduced if ControlNet's Frechet distance is clearly less than that of lite and that of scratch, and it follows
    prompts as well as the base: the interval of the difference lies above -NEAR. Mixed if some of the three hold."""
    frechet = {method: across_seeds(rows, method, "frechet") for method in NAMES}
    difference = interval(rows, "control", "base", "all")
    points = [clearly_better(frechet["control"], frechet["lite"], -1),
              clearly_better(frechet["control"], frechet["scratch"], -1), difference.low > -NEAR]
    word = "reproduced" if all(points) else "mixed" if any(points) else "not reproduced"

    def told(name):
        titles = {"control": "with ControlNet", "lite": "with ControlNet-lite", "scratch": "from scratch",
                  "base": "with the base alone", "real": "for real images"}
        return ", ".join(f"{in_figures(rows, method, name)} {title}" for method, title in titles.items())

    return word, (f"the Frechet distance is {told('frechet')}. The share of images that show all of their prompt is "
                  f"{told('all')}. That of ControlNet differs from the base's by {difference}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 8.2), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1, 1.5])
    left, right = top.subplots(1, 2, width_ratios=[1, 1.2])
    names = {**HEADINGS, "real": "real\nimages"}
    grouped_bars(left, names.values(), {"": [across_seeds(rows, name, "frechet") for name in names]},
                 "Frechet distance (less is better)")
    grouped_bars(right, names.values(), {said: [across_seeds(rows, name, said) for name in names] for said in SAID},
                 "Share of images that show what the prompt says")
    right.set_ylim(0, 1.2)
    right.legend(fontsize=9, ncols=4, loc="upper center")
    images, seed = lab.test_images[:6], lab.seeds[0]
    texts = captions(lab.dataset, "test")[: len(images)]
    columns = {"real": images, "its\nmask": mask(images) * 2 - 1}
    columns |= {name: draw(lab, method, seed, tokenize(texts).to(lab.device), guidance=2.0)
                for method, name in HEADINGS.items()}
    columns_of_images(bottom.subplots(), columns, texts, fontsize=9)
    return fig


if __name__ == "__main__":
    main("quality")
