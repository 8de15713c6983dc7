"""Decoders, one a file, behind the same call."""
