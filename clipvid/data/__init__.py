"""Data sets of videos: records, readers of annotation formats, and the dataset that decodes them into batches."""
