"""minicnet: ControlNet from scratch, small enough to read in one evening. Start with diffusion.py."""
