"""What a user sees: names of files, small tables, progress bars."""
