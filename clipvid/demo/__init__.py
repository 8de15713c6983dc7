"""The demo: training, evaluation and search on videos that it renders itself."""
