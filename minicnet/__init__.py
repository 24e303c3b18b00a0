"""minicnet: ControlNet from scratch, to be read in one evening.

Read diffusion.py, words.py, unet.py and controlnet.py in this order; then conditions.py,
training.py and train_mnist_edges.py, which puts all of it together. The other files serve these.
"""

import os

# OpenMP's threads wait for one another by spinning, for billions of turns by default, which starves
# two programs that share the cores: one machine trained eighty times more slowly. With 1,000 turns
# a Zen 5 with two cores takes eight times as long beside another training, and up to a fifth longer
# alone. Torch reads the variable when it is loaded, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
