"""The paper's claims, measured: one file for each, with the rule that decides it."""
