"""A corpus: images in a fixed order, from a folder, Parquet files or tar archives, decoded."""
