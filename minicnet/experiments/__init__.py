"""The paper's claims at toy scale, one file each: python -m minicnet.experiments.NAME, or .all for all of them."""
