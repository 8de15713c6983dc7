"""What data sets are made of: records, arrays, labels, and how sets are merged and split."""
