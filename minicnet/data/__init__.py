"""Images and captions: three datasets to download, and digits that are drawn and coloured here."""

from minicnet.data.datasets import DATASETS, NOUNS, captions, choose_dataset, load_dataset

__all__ = ["DATASETS", "NOUNS", "captions", "choose_dataset", "load_dataset"]
