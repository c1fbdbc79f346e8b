"""Logging of worker processes: our own lines, without the advice that libraries print to their own developers."""

import logging
import warnings


def configure_logging() -> None:
    """Log warnings to stderr; of torch, torchrec and their warnings only errors."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in ("torchrec", "torch.fx._symbolic_trace", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
