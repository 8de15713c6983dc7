"""Stores of unit vectors with nearest-neighbour search."""
