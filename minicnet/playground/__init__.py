"""The live page: draw lines, and watch noise become an image that follows them."""
