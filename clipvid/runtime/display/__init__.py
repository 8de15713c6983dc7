"""Output for users: names of files, small tables, progress bars."""
