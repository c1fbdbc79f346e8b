"""``python -m rectrain_jobs.training.torchrun ...``: torchrun, with its options, that ends as its ranks end.

torchrun itself exits with 1 whatever happened. Whoever watches a pod has to tell wrong data, which no restart mends,
from a lost peer, and a checkpoint that was saved on SIGTERM from a failure.
"""

import os
import sys
from collections.abc import Sequence

from rectrain_jobs.training.exit_codes import ENDED_BY_SIGNAL
from rectrain_jobs.training.first_process import end_as_child


def main(args: Sequence[str] | None = None) -> int:
    """Run torchrun and return the exit code of the rank that failed first, or 128 and the signal that came.

    Args:
        args: Arguments of torchrun. Default: those of the process.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    # Else the agents tell each other where rank 0 is only once, and one that joins later waits for that in vain.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        torchrun(args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"error: rank {rank} ended with exit code {failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else ENDED_BY_SIGNAL - failure.exitcode
    except SignalException as error:
        return ENDED_BY_SIGNAL + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(end_as_child(main))
