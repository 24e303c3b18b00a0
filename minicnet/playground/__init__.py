"""The live page: draw, and watch noise become an image that follows the drawing."""
