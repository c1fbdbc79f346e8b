"""Runs a function of a test module on several gloo processes."""

import datetime
import importlib.util
import inspect
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

# The processes are forked from a server that has imported torchrec once (a dozen seconds) and has no threads yet.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torchrec.distributed.model_parallel", "rectrain_jobs.models.registry"])


def run_on_ranks(function: Callable[..., Any], ranks: int, *arguments: Any, timeout: float = 240) -> list[Any]:
    """Call function(*arguments) on each of so many processes of one gloo group; return what each returned.

    Args:
        function: A function at the top level of a module; the module is imported anew in each process.
        ranks: Number of processes.
        arguments: Tensors, numbers, strings, None, and lists, tuples and dicts of them; the results likewise.
        timeout: Seconds until the processes are killed; collectives give up a little earlier and say where.

    Raises:
        AssertionError: When a process fails or takes too long, with what it printed.
    """
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(list(arguments), folder / "arguments.pt")
        source = (inspect.getfile(function), function.__qualname__)
        processes = [
            _processes.Process(target=_main, args=(*source, name, rank, ranks, timeout)) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        try:
            running = {process.sentinel: process for process in processes}
            while running and not any(process.exitcode for process in processes):
                ended = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
                assert ended, f"still running after {timeout} s:\n" + _output(folder, ranks)
                for sentinel in ended:
                    running.pop(sentinel).join()
        finally:
            for process in processes:
                process.kill()
                process.join()
        failed = [rank for rank, process in enumerate(processes) if process.exitcode]
        assert not failed, f"ranks {failed} failed or were ended for it:\n" + _output(folder, ranks)
        return [torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(ranks)]


def _output(folder: Path, ranks: int) -> str:
    texts = [folder / f"output{rank}.txt" for rank in range(ranks)]
    return "\n".join(f"--- {path.stem}\n{path.read_text()}" for path in texts if path.exists())


def _main(path: str, function: str, folder: str, rank: int, ranks: int, timeout: float) -> None:
    output = os.open(f"{folder}/output{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # One gloo group on one machine needs no more than the loopback device and one thread a process.
    os.environ.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    for name, number in (("RANK", rank), ("WORLD_SIZE", ranks)):
        os.environ[name] = os.environ[f"LOCAL_{name}"] = str(number)

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=0.8 * timeout),
    )
    result = getattr(module, function)(*torch.load(f"{folder}/arguments.pt", weights_only=True))
    torch.save(result, f"{folder}/result{rank}.pt")
    dist.destroy_process_group()
