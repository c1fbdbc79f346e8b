"""Conversion streams: an input that is larger takes no more memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

USER = {"name": "user_id", "kind": "Categorical", "cardinality": 1000}
ITEM = {"name": "item_id", "kind": "Categorical", "cardinality": 1000, "encoding": "Hashing"}
HISTORY = {"name": "history", "kind": "Sequence", "of": "item_id", "maxLength": 5}
BINARY = [{"name": "label", "task": "Binary"}]
NAMED = [{"name": "a", "kind": "Categorical", "cardinality": 1000}, {"name": "b", "kind": "Dense"}]
FIELDS = [{"name": f"field_{i}", "kind": "Categorical", "cardinality": 1000} for i in range(3)]
CRITEO = [
    *({"name": f"int_{i}", "kind": "Dense", "transform": "Log", "fillMissing": 0} for i in range(1, 14)),
    *({"name": f"cat_{i}", "kind": "Categorical", "cardinality": 100, "encoding": "Hashing"} for i in range(1, 27)),
]

_CONVERT = """
import json, re, sys
from pathlib import Path
from rectrain.api.data import DataSource
from rectrain.api.features import Feature, Label
from rectrain_jobs.data.convert import convert
from rectrain_jobs.data.formats import Definition, delimited, lines

# So many bytes are read at once, and Arrow reads 32 such blocks ahead of what is asked for.
delimited.BLOCK_BYTES = lines.BLOCK_BYTES = 1 << 17
asked = json.loads(sys.argv[1])
for uri in asked["inputs"]:
    definition = Definition(
        source=DataSource.model_validate(asked["source"] | {"uri": uri}),
        features=[Feature.model_validate(feature) for feature in asked["features"]],
        labels=[Label.model_validate(label) for label in asked["labels"]],
    )
    convert(definition, f"{uri}.train", f"{uri}.validation" if asked["validation"] else None, shard_bytes=1 << 20)
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def interactions(rows: np.ndarray) -> str:
    return "".join(" ".join(map(str, row)) + "\n" for row in rows.tolist())


def comirec(rows: np.ndarray) -> str:
    return "".join(f"{a},{b},{c}\n" for a, b, c in rows[:, :3].tolist())


def triples(rows: np.ndarray) -> str:
    return "".join(f"{a},{b},{a % 2}\n" for a, b in rows[:, :2].tolist())


def libsvm(rows: np.ndarray) -> str:
    return "".join(f"{a % 2} {a}:1 {b}:1 {c}:1\n" for a, b, c in rows[:, :3].tolist())


def criteo(rows: np.ndarray) -> str:
    hexadecimal = ("\t".join(f"{value:08x}" for value in row) for row in np.tile(rows, 5)[:, :26].tolist())
    return "".join("1\t" + "7\t" * 13 + line + "\n" for line in hexadecimal)


FORMATS: dict[str, tuple[Callable[[np.ndarray], str] | None, list[dict], list[dict]]] = {
    "Interactions": (interactions, [USER, ITEM], []),
    "Sequences": (interactions, [USER, ITEM, HISTORY], []),
    "ComiRec": (comirec, [USER, ITEM], []),
    "Triples": (triples, NAMED, BINARY),
    "LibSVM": (libsvm, FIELDS, BINARY),
    "Criteo": (criteo, CRITEO, BINARY),
    "Parquet": (None, NAMED, BINARY),
}


def write(path: Path, format_: str, rows: np.ndarray, times: int) -> None:
    """Write the same rows so many times over."""
    text_of = FORMATS[format_][0]
    if text_of is not None:
        header = "a,b,label\n" if format_ == "Triples" else ""
        path.write_text(header + text_of(rows) * times)
        return
    table = pa.table({"a": rows[:, 0], "b": rows[:, 1].astype(float), "label": (rows[:, 0] % 2).astype(float)})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(times):
            writer.write_table(table)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_larger_input_takes_no_more_memory(format_: str, tmp_path: Path) -> None:
    _, features, labels = FORMATS[format_]
    rows = np.random.default_rng(0).integers(0, 1000, (10_000 if format_ == "Criteo" else 50_000, 6))
    inputs = {times: tmp_path / f"{times}" for times in (10, 80)}
    for times, path in inputs.items():
        write(path, format_, rows, times)
    asked = {
        "inputs": list(map(str, inputs.values())),
        "source": {"format": format_},
        "features": features,
        "labels": labels,
        "validation": format_ == "Sequences",
    }
    done = subprocess.run([sys.executable, "-c", _CONVERT, json.dumps(asked)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    small, large = (int(line) * 1024 for line in done.stdout.split())
    more = 70 * len(rows)
    assert large - small < 8 * more, f"{large - small:,} B more for {more:,} rows more, as if a column was kept"
