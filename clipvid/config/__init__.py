"""Settings: every setting as a dataclass that checks itself."""
