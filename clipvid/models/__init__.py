"""A video model on CLIP: build, save, load, convert."""
