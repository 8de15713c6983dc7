"""Branches: modules that turn the taps of a frozen tower into frame embeddings that depend on each other.

Contract of every branch: `levels` (the tower's levels that it reads), `options` (a dataclass that rebuilds it), and
Taps or Pixels -> (B, T, E). Names and options load no torch (`options.py`, `presets.py`); each branch has a file.
"""
