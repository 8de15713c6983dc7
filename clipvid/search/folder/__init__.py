"""The index as it is saved: its videos, its folder, its version, and their check."""
