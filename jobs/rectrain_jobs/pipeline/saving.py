"""A pipeline as one folder: JSON, safetensors and Parquet, which run no code when read.

`pipeline.json` names the stages and has their settings and the digests of the other files; it is written last.
`arrays.safetensors` has the numbers of all stages, `tables/<path of the stage>.<name>.parquet` each a table.
"""

import hashlib
import io
import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy

from rectrain.api.errors import UserError
from rectrain_jobs.pipeline.stage import ENTRY_POINTS, Stage, State, stage_class
from rectrain_jobs.storage import ObjectStore, store_at

FORMAT_VERSION = 1
MANIFEST = "pipeline.json"
ARRAYS = "arrays.safetensors"


def save_stage(stage: Stage, target: ObjectStore | str | Path) -> None:
    """Write a stage and all inside it; what is there is replaced.

    Args:
        stage: A pipeline, a predictor or a transformer; its class and those inside are registered.
        target: A store, a URI or a local folder.

    Raises:
        UserError: A class is not registered.
    """
    store = store_at(target)
    arrays: dict[str, npt.NDArray[Any]] = {}
    tables: dict[str, pa.Table] = {}
    described = _described(stage, "stage", arrays, tables)
    store.delete([MANIFEST])
    store.delete_prefix("tables")
    contents = {ARRAYS: safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})}
    contents |= {_table_file(path): parquet_bytes(table) for path, table in tables.items()}
    for key, data in contents.items():
        store.write_bytes(key, data)
    digests = {key: hashlib.sha256(data).hexdigest() for key, data in contents.items()}
    document = {"formatVersion": FORMAT_VERSION, "stage": described, "files": digests}
    store.write_bytes(MANIFEST, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def load_stage(source: ObjectStore | str | Path) -> Stage:
    """Read what `save_stage` wrote.

    Args:
        source: A store, a URI or a local folder.

    Raises:
        UserError: A file is missing or damaged, the folder or a stage is of a newer version, or a stage is not known
            here: the message says what to install.
    """
    store = store_at(source)
    where = store.uri_of(MANIFEST)
    try:
        document = json.loads(store.read_bytes(MANIFEST))
        if document["formatVersion"] != FORMAT_VERSION:
            raise UserError(
                f"{where}: has format version {document['formatVersion']!r}; this rectrain reads {FORMAT_VERSION}"
            )
        contents = {key: _checked(store, key, digest) for key, digest in document["files"].items()}
        return _restored(document["stage"], "stage", safetensors.numpy.load(contents[ARRAYS]), contents, where)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        pa.ArrowException,
        safetensors.SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: is no pipeline of rectrain: {type(error).__name__}: {reason}") from None


def _described(
    stage: Stage, path: str, arrays: dict[str, npt.NDArray[Any]], tables: dict[str, pa.Table]
) -> dict[str, Any]:
    """Return the JSON of a stage and take in the arrays and tables of it and of those inside."""
    name = type(stage).__dict__.get("stage_name")
    if name is None:
        raise UserError(
            f"{path}: class {type(stage).__qualname__} is not registered; decorate it with "
            '@register("package.stage"), so that it is found when the pipeline is loaded'
        )
    state = stage.state()
    arrays |= {f"{path}.{key}": array for key, array in state.arrays.items()}
    tables |= {f"{path}.{key}": table for key, table in state.tables.items()}
    providers = (entry_point.dist for entry_point in entry_points(group=ENTRY_POINTS, name=name))
    return {
        "name": name,
        "version": stage.stage_version,
        "package": {found.name: found.version for found in providers if found is not None},
        "config": state.config,
        "arrays": list(state.arrays),
        "tables": list(state.tables),
        "stages": {key: _described(part, f"{path}.{key}", arrays, tables) for key, part in state.stages.items()},
    }


def _restored(
    described: dict[str, Any], path: str, arrays: dict[str, npt.NDArray[Any]], contents: dict[str, bytes], where: str
) -> Stage:
    packages = " ".join(f"{name}=={number}" for name, number in described["package"].items())
    remedy = f"it was saved with {packages}: install it"
    if not packages:
        remedy = "import the module that registers it before the pipeline is loaded"
    kind = stage_class(described["name"], remedy)
    version = described["version"]
    if not 1 <= version <= kind.stage_version:
        raise UserError(
            f"{where}: {path}: stage {described['name']!r} has version {version}, the installed one reads up to "
            f"{kind.stage_version}; {remedy}"
        )
    state = State(
        described["config"],
        {key: arrays[f"{path}.{key}"] for key in described["arrays"]},
        {key: table_of(contents[_table_file(f"{path}.{key}")]) for key in described["tables"]},
        {key: _restored(part, f"{path}.{key}", arrays, contents, where) for key, part in described["stages"].items()},
    )
    return kind.from_state(state, version)


def _table_file(path: str) -> str:
    return f"tables/{path}.parquet"


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def table_of(data: bytes) -> pa.Table:
    """Return the table of a Parquet file."""
    # Threads of Arrow's pool can abort a process that ends soon after.
    return pq.read_table(io.BytesIO(data), use_threads=False)


def _checked(store: ObjectStore, key: str, digest: str) -> bytes:
    data = store.read_bytes(key)
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise UserError(f"{store.uri_of(key)}: is damaged: its SHA-256 is {found}, and {MANIFEST} says {digest}")
    return data
