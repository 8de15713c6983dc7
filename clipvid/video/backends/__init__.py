"""Video decoders, one per module, with a common interface."""
