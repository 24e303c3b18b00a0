"""minicnet: ControlNet from scratch, to be read in one evening.

Read diffusion.py, words.py, unet.py and controlnet.py in this order; then conditions.py,
training.py and train_mnist_edges.py, which puts all of it together. The other files serve these.
"""

import os

# OpenMP's threads wait for one another by spinning, for billions of turns by default. Where another
# program needs the cores, this slows training eighty times. With 1,000 turns it takes eight times
# as long, and 7% longer on free cores (two cores of a Zen 5). Torch reads the variable when it is
# loaded, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
