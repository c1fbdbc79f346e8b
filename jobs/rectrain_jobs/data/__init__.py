"""Training data: raw formats to MDS shards, and MDS shards to columnar batches."""
