"""Features of a data set by a frozen model: streamed, in memory, cached on disk."""
