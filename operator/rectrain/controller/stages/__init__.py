"""The policies of decide(), one file for each."""
