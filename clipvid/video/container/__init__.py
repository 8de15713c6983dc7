"""Container formats: file type, packets, frame times, seek points, colour conversion."""
