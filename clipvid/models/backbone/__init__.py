"""A frozen open_clip model and the code that reads its inner levels."""
