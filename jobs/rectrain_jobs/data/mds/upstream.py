"""The parts of mosaicml-streaming that define the format and the order, without the rest of it."""

import importlib
import sys
import threading
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from types import ModuleType

_import_lock = threading.RLock()


@cache
def streaming_module(name: str) -> ModuleType:
    """Import the submodule `name` of `streaming.base`, for instance `partition`.

    The submodules used here need numpy and the compression libraries only, while `streaming/__init__.py` brings in
    transformers and scikit-learn: several seconds in every process of a job. So, unless the whole package is loaded
    already, the packages on the way are stood in for by empty ones during the import, and everything is taken out of
    `sys.modules` afterwards: `import streaming` elsewhere still gives the real package.
    """
    full_name = f"streaming.base.{name}"
    with _import_lock:
        if "streaming" in sys.modules:
            return importlib.import_module(full_name)
        try:
            search: list[str] | None = None
            for package in ("streaming", "streaming.base"):
                spec = PathFinder.find_spec(package, search)
                if spec is None or spec.submodule_search_locations is None:
                    raise ModuleNotFoundError(f"No module named {package!r}", name=package)
                sys.modules[package] = module_from_spec(spec)
                search = list(spec.submodule_search_locations)
            return importlib.import_module(full_name)
        finally:
            for loaded in [key for key in sys.modules if key == "streaming" or key.startswith("streaming.")]:
                del sys.modules[loaded]
