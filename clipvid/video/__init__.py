"""Video files read as uint8 frames: containers, decoders, sampling, transforms."""
