import sys
from pathlib import Path

# Helpers beside the tests (`launch`, `minio`) are imported by name; pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parent))

from minio import bucket, minio  # noqa: F401
