"""What a run measures on test images: the scores, one record of them, and the record as a table."""

from dataclasses import dataclass

from minicnet.evaluation import MEASURES, edge_f1, frechet_distance, prompt_accuracy

TITLES = {  # of the measures
    "edge_f1": "edge-F1",
    "edge_f1_strict": "strict edge-F1",
    "mask_iou": "mask IoU",
    "colour_error": "colour error (less is better)",
    "depth_error": "depth error (less is better)",
    "scribble_f1": "edge-F1 of the scribble",
    "digit": "the prompt's digit is recognised",
    "label": "the prompt's object is recognised",
    "ink": "the prompt's ink is shown",
    "paper": "the prompt's paper is shown",
    "stroke": "the prompt's stroke is shown",
    "lean": "the prompt's lean is shown",
    "all": "all of the prompt is shown",
    "frechet": "Frechet distance (less is better)",
}


def score(images, name, condition, captions, classifier, reference):
    """Return {measure: value} of images (B, C, H, W) in [-1, 1].

    name, condition: the condition that they were given, such as "canny", and its maps. captions:
    their prompts, a list of B. classifier: trained on real images. reference: real images, for the
    Frechet distance.
    """
    scores = {MEASURES[name].__name__: MEASURES[name](images, condition)}
    if name == "canny":
        scores["edge_f1_strict"] = edge_f1(images, condition, tolerance=0)
    scores |= prompt_accuracy(images, captions, classifier)
    scores["frechet"] = frechet_distance(classifier, images, reference)
    return scores


@dataclass
class Results:
    """What one run measured on test images.

    base, control: the scores without and with control, {guidance: {measure: value}}. real: the
    scores of other real images, which are the ceiling. heldout_loss: {"base", "control",
    "shuffled": value}. seconds: {"base", "control", "total": value}.
    """

    dataset: str
    condition: str
    base_dataset: str
    device: str
    seed: int
    torch: str
    date: str
    images: int
    batch_size: int
    base_steps: int
    control_steps: int
    base: dict
    control: dict
    real: dict
    heldout_loss: dict
    seconds: dict

    def __post_init__(self):
        self.base = {float(w): scores for w, scores in self.base.items()}  # JSON's keys are strings
        self.control = {float(w): scores for w, scores in self.control.items()}

    @property
    def measure(self):
        """The name of the measure of how well images follow the condition, a key of TITLES."""
        return MEASURES[self.condition].__name__

    def as_table(self):
        """Return the results as Markdown."""
        columns = {
            **{f"base, guidance {w:g}": scores for w, scores in self.base.items()},
            **{f"with control, guidance {w:g}": scores for w, scores in self.control.items()},
            "real images": self.real,
        }
        lines = [
            f"**{self.dataset}, {self.condition}**, seed {self.seed}, {self.device}, torch "
            f"{self.torch}, {self.date}, {self.images} test images",
            "",
            f"| | {' | '.join(columns)} |",
            "|---|" + "---|" * len(columns),
        ]
        for name, title in TITLES.items():
            if name in self.real:
                cells = " | ".join(f"{scores[name]:.3f}" for scores in columns.values())
                lines.append(f"| {title} | {cells} |")
        base = (f"{self.base_steps:,} steps of the base in {self.seconds['base']:.0f} s"
                if self.seconds["base"] else
                f"The base comes from an earlier run on {self.base_dataset}")
        loss = self.heldout_loss
        lines += [
            "",
            f"Held-out loss: {loss['control']:.4f} with the right condition, "
            f"{loss['shuffled']:.4f} with that of another image, {loss['base']:.4f} without "
            f"control. {base}, {self.control_steps:,} steps of the control in "
            f"{self.seconds['control']:.0f} s, batches of {self.batch_size}; "
            f"{self.seconds['total'] / 60:.1f} minutes in all, with loading and measuring.",
        ]
        return "\n".join(lines)
