"""The embedded default: the whole job on videos it renders itself."""
