"""The rule by which dropping prompts is judged."""

import pytest

from minicnet.experiments import prompt_dropping as pd


def rows_of(alone, conflicting, f1):
    """Rows in which dropping half instead of none is worth so much: in label accuracy without a prompt and under
    conflicting ones, and in edge-F1."""
    rows = {}
    for kind, gain in zip(pd.PROMPTS, (alone, conflicting)):
        for share in ("base", *pd.SHARES):
            half = share in ("50%", "100%")
            for seed in (0, 1):
                values = {"label_accuracy": 0.6 + gain * half, "edge_f1": 0.8 + f1 * half, "rival": 0.1, "frechet": 9.0}
                rows[f"{share}, {kind}-{seed}"] = values | {f"{name}_blocks": [value - 0.01, value + 0.01]
                                                            for name, value in values.items()}
    return rows


@pytest.mark.parametrize("gains, word", [
    ((0.2, 0.0, 0.0), "reproduced"), ((0.0, 0.2, 0.0), "mixed"), ((0.0, 0.0, 0.1), "mixed"),
    ((-0.2, 0.2, 0.0), "mixed"), ((0.0, 0.0, 0.0), "not reproduced"), ((-0.2, -0.1, 0.0), "not reproduced")])
def test_half_of_the_prompts_dropped_must_help_where_there_is_no_prompt(gains, word):
    found, why = pd.verdict(rows_of(*gains))
    assert found == word and f"half instead of none changed that by {gains[0]:+.3f}" in why
