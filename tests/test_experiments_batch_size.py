"""The rule by which batch sizes are judged, and the step at which a net sets in."""

import pytest

from minicnet.experiments import batch_size


def rows_of(f1, frechet):
    """Rows in which the large batch is ahead of the small one by so much edge-F1 and so much Frechet distance."""
    rows = {}
    for seed in (0, 1, 2):
        for size, share in (("small", 0), ("usual", 0.5), ("large", 1)):
            value, noise = 0.9 + share * f1, 0.001 * (seed if size == "large" else 0)
            rows[f"{size}-{seed}"] = {"edge_f1": value, "edge_f1_blocks": [value, value],
                                      "frechet": 20 - share * frechet + noise, "steps": 50, "batch_size": 8}
            if seed == 0:
                rows[f"{size}-{seed}"] |= {"seen": [0, 10, 20, 30], "curve": [0.7, 0.72, 0.86, value]}
    return rows


@pytest.mark.parametrize("f1, frechet, word", [
    (0.05, 5, "reproduced"), (0.05, 0, "mixed"), (-0.05, 5, "not reproduced"), (-0.05, -5, "not reproduced")])
def test_large_batches_must_be_better_by_both_measures(f1, frechet, word):
    found, why = batch_size.verdict(rows_of(f1, frechet))
    assert found == word and f"smallest changed edge-F1 by {f1:+.3f}" in why


def test_a_net_sets_in_where_half_of_the_rise_is_over():
    assert batch_size.sets_in({"seen": [0, 10, 20, 30], "curve": [0.5, 0.6, 0.8, 0.9]}) == 20
    assert batch_size.sets_in({"seen": [0, 10, 20, 30], "curve": [0.5, 0.9, 0.8, 0.6]}) == 10
