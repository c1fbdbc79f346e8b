"""Iterate StreamingDataset in the processes of a node and write down what it yields.

Run as `streaming_reference.py DATASET OUT` with the runs as JSON on standard input. The processes are forks of this,
so that the streaming package is imported once.
"""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

from streaming import StreamingDataLoader, StreamingDataset


def iterate(path: str, run: dict) -> dict:
    """What one rank sees: whole epochs; then, in a second run, the middle of epoch 1."""
    options = {"local": path, "batch_size": run["batch_size"], **run["options"]}
    dataset = StreamingDataset(**options)
    epochs = [[sample["id"] for sample in dataset] for _ in range(run["epochs"])]
    del dataset

    interrupted = StreamingDataset(**options)
    interrupted.next_epoch = 1
    loader = StreamingDataLoader(interrupted, batch_size=run["batch_size"])
    batches = iter(loader)
    for _ in range(run["stop"]):
        next(batches)
    state = loader.state_dict()
    interrupted._iterator.exit()

    resumed = StreamingDataset(**options)
    resumed.load_state_dict(state)
    return {"epochs": epochs, "state": state, "resumed": [sample["id"] for sample in resumed]}


def rank_main(path: str, run: dict, rank: int, port: int, out: Path) -> None:
    if run["ranks"] > 1:
        ranks = str(run["ranks"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        import torch.distributed as dist

        dist.init_process_group("gloo")
    out.write_text(json.dumps(iterate(path, run)))


def main() -> None:
    path, out = sys.argv[1:]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, run in json.load(sys.stdin).items():
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
            files = [Path(folder, f"{rank}.json") for rank in range(run["ranks"])]
            children = []
            for rank, file in enumerate(files):
                child = os.fork()
                if child == 0:
                    try:
                        rank_main(path, run, rank, port, file)
                        os._exit(0)
                    except BaseException:
                        sys.excepthook(*sys.exc_info())
                        os._exit(1)
                children.append(child)
            codes = [os.waitpid(child, 0)[1] for child in children]
            assert not any(codes), f"{name}: {codes}"
            results[name] = {"ranks": [json.loads(file.read_text()) for file in files]}
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
