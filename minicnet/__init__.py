"""minicnet: ControlNet from scratch, to be read in one evening.

Read diffusion.py, words.py, unet.py and controlnet.py in this order; then conditions.py,
training.py and train_mnist_edges.py, which puts all of it together. The other files serve these.
"""

import os

# OpenMP's threads wait for one another by spinning. Where another program needs the cores, the
# default of billions of spins slows training eighty times, and 5,000 spins only four times. The
# variable is read when torch is loaded, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
