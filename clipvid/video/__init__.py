"""Files to uint8 frames: containers, decoders, sampling, transforms."""
