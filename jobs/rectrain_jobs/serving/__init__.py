"""HTTP services that answer from a model bundle; they need no torch."""
