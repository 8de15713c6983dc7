"""Queries of an index: their embeddings, and filters of the videos."""
