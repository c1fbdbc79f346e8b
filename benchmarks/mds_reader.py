"""Compare the columnar MDS reader with StreamingDataset on the same shards, in one run.

Run `python benchmarks/mds_reader.py`; `--json` prints one JSON object on the last line, whose `ratio` is that of the
scalar columns. Both read the same shuffled epoch with the page cache warm; the order of both is checked to be equal.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rectrain_jobs.data.mds import MDSDataset, Order, Position

SCALAR_COLUMNS = {
    "label": "int32",
    **{f"dense_{number:02}": "float32" for number in range(13)},
    **{f"sparse_{number:02}": "int64" for number in range(26)},
}
ARRAY_COLUMNS = {"label": "int32", "dense": "ndarray:float32:13", "sparse": "ndarray:int64:26"}


def main() -> None:
    """Run both schemas and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, help="samples in the dataset (default 200000)")
    parser.add_argument("--batch-size", type=int, default=4096, help="samples in a batch (default 4096)")
    parser.add_argument("--size-limit", type=int, default=1 << 24, help="bytes in a shard (default 16 MiB)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments = parser.parse_args()

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rectrain-benchmark-") as folder:
        for name, columns in {"scalars": SCALAR_COLUMNS, "arrays": ARRAY_COLUMNS}.items():
            path = Path(folder, name)
            write(path, columns, arguments.rows, arguments.size_limit)
            results[name] = figures = compare(path, arguments.rows, arguments.batch_size)
            print(
                f"{name} ({len(columns)} columns): columnar reader {figures['samples_per_second']:,.0f} samples/s, "
                f"StreamingDataset {figures['streaming_samples_per_second']:,.0f} samples/s, "
                f"ratio {figures['ratio']:.0f}; bare numpy gather of the records "
                f"{figures['numpy_gather_samples_per_second']:,.0f} samples/s"
            )
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
        settings = {"rows": arguments.rows, "batch_size": arguments.batch_size, "machine": machine}
        print(json.dumps({"ratio": results["scalars"]["ratio"], **results, **settings}))


def write(path: Path, columns: dict[str, str], rows: int, size_limit: int) -> None:
    """Write `rows` random samples."""
    from streaming import MDSWriter

    random = np.random.default_rng(0)
    with MDSWriter(out=str(path), columns=columns, size_limit=size_limit) as writer:
        for _ in range(rows):
            writer.write({name: _value(encoding, random) for name, encoding in columns.items()})


def compare(path: Path, rows: int, batch_size: int) -> dict[str, float]:
    """Time whole epochs of both readers on the dataset in `path`, and the bare gather beside them."""
    dataset = MDSDataset(str(path))
    labels, _ = read_columns(dataset, batch_size)  # fills the page cache and maps the shards
    ours = rows / statistics.median(read_columns(dataset, batch_size)[1] for _ in range(5))
    streaming_labels, streaming_seconds = read_streaming(path, batch_size)
    if not np.array_equal(streaming_labels, labels):
        raise SystemExit("the two readers disagree about the samples of the epoch")
    theirs = rows / streaming_seconds
    return {
        "samples_per_second": ours,
        "streaming_samples_per_second": theirs,
        "ratio": ours / theirs,
        "numpy_gather_samples_per_second": rows / gather_records(dataset, batch_size),
        "shards": len(dataset.index.shards),
    }


def read_columns(dataset: MDSDataset, batch_size: int) -> tuple[npt.NDArray[np.int32], float]:
    """Read the first epoch with the columnar reader: the labels, and the seconds, computing the order included."""
    begin = time.perf_counter()
    labels = [
        batch.columns["label"][: batch.num_valid]
        for batch in dataset.training_epoch(Position(), batch_size=batch_size, order=Order())
    ]
    return np.concatenate(labels), time.perf_counter() - begin


def read_streaming(path: Path, batch_size: int) -> tuple[npt.NDArray[np.int32], float]:
    """Read the same epoch with StreamingDataset: the labels, and the seconds it took, from the first sample on."""
    from streaming import StreamingDataset

    samples = iter(StreamingDataset(local=str(path), shuffle=True, batch_size=batch_size))
    labels = [next(samples)["label"]]  # its start is not counted
    begin = time.perf_counter()
    labels += [sample["label"] for sample in samples]
    return np.array(labels, np.int32), time.perf_counter() - begin


def gather_records(dataset: MDSDataset, batch_size: int) -> float:
    """Gather whole records at random out of one array in memory, the least any reader has to do: the seconds."""
    stride = sum(column.size or 0 for column in dataset.columns.values())
    records = np.ones((dataset.num_samples, stride), np.uint8)
    order = np.random.default_rng(0).permutation(dataset.num_samples)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        for start in range(0, len(order), batch_size):
            records.take(order[start : start + batch_size], axis=0)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _value(encoding: str, random: np.random.Generator) -> Any:
    kind, *arguments = encoding.split(":")
    if kind == "ndarray":
        dtype, size = arguments[0], int(arguments[1])
        return random.integers(0, 1 << 20, size).astype(dtype)
    return np.dtype(kind).type(random.integers(0, 1 << 20))


if __name__ == "__main__":
    main()
