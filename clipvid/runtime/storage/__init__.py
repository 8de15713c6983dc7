"""Stored folders: exchanged whole, locked, sealed by hashes, and read by a schema."""
