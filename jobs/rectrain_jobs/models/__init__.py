"""Models: one file each, built by type from the job's spec."""
