"""Quality of controlled images: the verdict on rows that are made up."""

import pytest

from minicnet.experiments import quality


def rows_of(frechet, adherence=0.0):
    """Rows in which methods have these Frechet distances, and control shows the prompt so much more than the base."""
    rows = {}
    for seed, wobble in enumerate((0.05, -0.05, 0.0)):
        for name, value in {**frechet, "base": 2.0, "real": 1.0}.items():
            share = 0.9 + adherence * (name == "control")
            rows[f"{name}-{seed}"] = {"frechet": value + wobble * (name == "control"), "all": share,
                                      "all_blocks": [share, share - 0.1, share]}
    return rows


BEST = dict(control=1.0, lite=2.0, scratch=9.0)


@pytest.mark.parametrize("rows, word", [
    (rows_of(BEST), "reproduced"), (rows_of(BEST, 0.05), "reproduced"),
    (rows_of(BEST, -0.05), "mixed"),  # better images, that show less of their prompts
    (rows_of({**BEST, "lite": 1.05}), "mixed"),  # a lead within the deviation of the seeds
    (rows_of({**BEST, "scratch": 0.5}), "mixed"),
    (rows_of(dict(control=3.0, lite=2.0, scratch=1.0), -0.05), "not reproduced")])
def test_quality_is_reproduced_if_images_are_best_and_show_their_prompts_as_the_bases_do(rows, word):
    assert quality.verdict(rows)[0] == word
