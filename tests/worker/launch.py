"""Runs a function of a test module on several gloo processes. Run as a script, this file is one of the processes."""

import datetime
import importlib.util
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

RESULT, ARGUMENTS = "result{rank}.pt", "arguments.pt"


def run_on_ranks(function: Callable[..., Any], ranks: int, *arguments: Any, timeout: float = 120) -> list[Any]:
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
        torch.save(list(arguments), folder / ARGUMENTS)
        command = [sys.executable, __file__, inspect.getfile(function), function.__qualname__, name, str(timeout)]
        # One gloo group on one machine needs no more than the loopback device and one thread a process.
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        processes = [
            subprocess.Popen(
                command,
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            with ThreadPoolExecutor(ranks) as pool:
                outcomes = [pool.submit(_finish, p, rank, timeout) for rank, p in enumerate(processes)]
                done, _ = wait(outcomes, return_when=FIRST_EXCEPTION)
                failed = next((o for o in done if o.exception()), None)
                for process in processes:
                    process.kill()
            if failed is not None:
                failed.result()
        finally:
            for process in processes:
                process.kill()
        return [torch.load(folder / RESULT.format(rank=rank), weights_only=True) for rank in range(ranks)]


def _finish(process: "subprocess.Popen[str]", rank: int, timeout: float) -> None:
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"rank {rank} was killed after {timeout} s; it printed:\n{output}") from None
    if process.returncode:
        raise AssertionError(f"rank {rank} ended with code {process.returncode}; it printed:\n{output}")


def _main(path: str, function: str, folder: str, timeout: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=datetime.timedelta(seconds=0.8 * float(timeout)),
    )
    arguments = torch.load(Path(folder, ARGUMENTS), weights_only=True)
    result = getattr(module, function)(*arguments)
    torch.save(result, Path(folder, RESULT.format(rank=rank)))
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
