"""A whole Milvus server for the tests, which the PyPI package `milvus` carries: a process with a clock of its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.processes import DIES_WITH_PARENT
from milvus import MilvusServer


class _Server(MilvusServer):  # type: ignore[misc]
    """One that ends with the tests, also when they are killed."""

    def get_milvus_executable_path(self) -> str:
        program = Path(super().get_milvus_executable_path())
        started = program.with_name("milvus-of-tests")  # beside it, where its libraries are looked for
        started.write_text(f'#!/bin/sh\nexec {" ".join(DIES_WITH_PARENT)} {program} "$@"\n')
        started.chmod(0o755)
        return str(started)


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server without data."""
    folder = tmp_path_factory.mktemp("milvus")
    server = _Server()
    server.set_base_dir(str(folder))
    try:
        server.start()
        yield f"http://127.0.0.1:{server.listen_port}"
    finally:
        server.stop()
        shutil.rmtree(folder)  # half a gigabyte of programs
