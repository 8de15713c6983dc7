"""Batches of decoded clips: their views, their collation, and how they cross processes."""
