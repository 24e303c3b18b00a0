"""What is read off a condition alone: the verdict on rows that are made up."""

import pytest

from minicnet.experiments import no_prompt


def rows_of(shares, held=0.9):
    """Rows in which these shares of images show the right digit; of all maps, `held` of the digits can be read."""
    rows = {f"map of {name}-0": {"digit": held} for name in no_prompt.CONDITIONS}
    for seed in (0, 1):
        for name, share in {**dict.fromkeys(no_prompt.CONDITIONS, 0.88), "base": 0.1, **shares}.items():
            rows[f"{name}-{seed}"] = {"digit": share, "ink": 0.1, "paper": 0.1, "digit_blocks": [share, share - 0.05]}
    return rows


@pytest.mark.parametrize("rows, word", [
    (rows_of({}), "reproduced"), (rows_of({"colour": 0.82}), "reproduced"), (rows_of({"colour": 0.5}), "mixed"),
    (rows_of(dict.fromkeys(no_prompt.CONDITIONS, 0.5)), "not reproduced"),
    (rows_of({"base": 0.88}), "not reproduced")])  # the base alone does as well
def test_contents_are_interpreted_if_images_show_what_can_be_read_off_every_map(rows, word):
    assert no_prompt.verdict(rows)[0] == word
