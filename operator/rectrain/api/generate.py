"""Writes what is generated from the job's types: ``python -m rectrain.api.generate``, in the repository's root.

With ``--check`` it writes nothing and fails when a file is not what would be written.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rectrain.api.reference import reference_page
from rectrain.api.schema import job_schema


def generated_files() -> dict[str, str]:
    """Return the text of every generated file by its path in the repository."""
    schema = job_schema()
    return {
        "docs/reference/job.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        "docs/reference/job.md": reference_page(schema),
    }


def write(root: Path, files: Mapping[str, str]) -> None:
    """Write the files below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def differences(root: Path, files: Mapping[str, str]) -> str:
    """Return a unified diff from the files below a folder to what they should be; empty when they are up to date."""
    diff: list[str] = []
    for name, text in files.items():
        path = root / name
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        diff += difflib.unified_diff(
            there.splitlines(keepends=True), text.splitlines(keepends=True), name, f"{name} (generated)"
        )
    return "".join(diff)


def main(args: list[str] | None = None) -> int:
    """Write or check the generated files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rectrain.api.generate", description=generated_files.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="root of the repository (default: this folder)")
    options = parser.parse_args(args)
    if not (options.root / "pyproject.toml").is_file():
        parser.error(f"{options.root.absolute()} is not the root of the repository: there is no pyproject.toml")
    if not options.check:
        write(options.root, generated_files())
        return 0
    diff = differences(options.root, generated_files())
    if diff:
        print(f"{diff}\ngenerated files are out of date: run `make generate` and commit the result", file=sys.stderr)
    return 1 if diff else 0


if __name__ == "__main__":
    sys.exit(main())
