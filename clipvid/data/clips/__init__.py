"""Parts of data sets: records, arrays, labels, and how sets are merged and split."""
