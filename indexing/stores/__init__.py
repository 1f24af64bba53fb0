"""Stores of other projects: an index written to LanceDB, Qdrant or Parquet, and asked there."""
