"""Annotation files and evaluation protocols, and the names of their readers."""

from clipvid.registry import register_reader

register_reader("csv", f"{__name__}.csv:read_csv", summary="table with a row per caption or clip")
register_reader("folder", "clipvid.data.open:read_folder", summary="one sub-folder per class")
register_reader("videos", "clipvid.data.open:read_videos", summary="every video below a folder, without annotations")
