"""The `rectrain` command line."""
