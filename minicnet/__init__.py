"""minicnet: ControlNet from scratch, to be read in one evening. Start with diffusion.py."""

import os

# OpenMP's threads wait for one another by spinning. Where another program needs the cores, the
# default of billions of spins slows training eighty times, and 5,000 spins only four times. The
# variable is read when torch is loaded, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
