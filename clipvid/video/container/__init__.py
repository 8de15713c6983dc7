"""What a file says of itself: format, packets, times, colour."""
