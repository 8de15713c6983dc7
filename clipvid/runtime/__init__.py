"""Tools for any room: atomic files and locks, pools, precision, profiling, optional imports."""
