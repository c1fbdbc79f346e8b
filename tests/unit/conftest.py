import sys
from pathlib import Path

# Helpers beside the tests are imported by name; pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parent))
