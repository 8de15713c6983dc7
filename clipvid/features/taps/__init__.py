"""Taps in memory and on disk: how they are keyed, packed, stored and moved to a device."""
