"""A dataset in three parts: to train on, to evaluate on meanwhile, and to test on at the end."""

from typing import NamedTuple

import torch

from minicnet.data.datasets import captions, load_dataset
from minicnet.data.prompts import training_prompts
from minicnet.errors import UserError

VALIDATION = 5000  # training images that are kept back


class Split(NamedTuple):
    """A part of a dataset: N images with what belongs to each."""

    images: torch.Tensor  # (N, C, H, W) in [-1, 1]
    labels: torch.Tensor  # (N,)
    captions: list  # of N sentences
    prompts: torch.Tensor  # (N, V, L): the caption and ways to say less, as tokens

    def part(self, start, stop):
        """Return the images start .. stop-1."""
        return Split(*(entry[start:stop] for entry in self))

    def to(self, device):
        """Return a copy on a device."""
        return Split(self.images.to(device), self.labels.to(device), self.captions,
                     self.prompts.to(device))


def load_splits(name, data_dir):
    """Load a dataset as three Splits: training, validation and test images.

    Raises UserError as `load_dataset` does, and if there are too few training images to share.
    """
    train, test = (_load(name, split, data_dir) for split in ("train", "test"))
    if len(train.images) <= VALIDATION:
        raise UserError(f"{name} in {data_dir} has only {len(train.images)} training images: more "
                        f"than {VALIDATION} are needed")
    train, validation = train.part(0, -VALIDATION), train.part(-VALIDATION, None)
    if name == "cifar10":  # a mirrored object is the same object; a mirrored digit is not
        images = torch.cat([train.images, train.images.flip(3)])
        train = Split(images, train.labels.repeat(2), train.captions * 2,
                      train.prompts.repeat(2, 1, 1))
    return train, validation, test


def _load(name, split, data_dir):
    images, labels = load_dataset(name, split, data_dir)
    texts = captions(name, split, data_dir)
    return Split(images, labels, texts, training_prompts(texts))
