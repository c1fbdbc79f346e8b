"""The model bundle: a trained model with everything that serving it needs, and nothing that runs code when read."""

from rectrain_jobs.bundle.reading import Bundle, load_bundle
from rectrain_jobs.bundle.writing import write_bundle

__all__ = ["Bundle", "load_bundle", "write_bundle"]
