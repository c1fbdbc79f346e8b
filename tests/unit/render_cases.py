"""What `rectrain render` is asked, and the objects that it should print: tests/unit/rendered.

`python tests/unit/render_cases.py` writes them anew; look at the difference before it is committed.
"""

from pathlib import Path

from click.testing import CliRunner

from rectrain.cli.main import cli

FOLDER = Path(__file__).parent / "rendered"
AMAZON_CDS = Path(__file__).parents[2] / "examples" / "amazon-cds" / "job.yaml"

CASES: dict[str, list[str]] = {
    "amazon-cds": [
        str(AMAZON_CDS),
        *("--namespace", "recommender", "--image", "registry.example/rectrain-worker:1"),
        *("--set", "data={train: {uri: s3://cds/train}, validation: {uri: s3://cds/validation}}"),
        *("--set", "output.uri=s3://cds/run"),
    ],
    **{
        name: [str(FOLDER / f"{name}.job.yaml"), *options]
        for name, options in {
            "gpu": [],
            "elastic": ["--image", "registry.example/rectrain-worker:1"],
            "conversion": ["--image", "registry.example/rectrain-worker:1"],
        }.items()
    },
}
"""Arguments by the name of the file that holds what is printed."""


def rendered(name: str) -> str:
    """Return what is printed for a case."""
    result = CliRunner().invoke(cli, ["render", *CASES[name]], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def golden(name: str) -> Path:
    """Return the file that holds what should be printed for a case."""
    return FOLDER / f"{name}.yaml"


if __name__ == "__main__":
    for case in CASES:
        golden(case).write_text(rendered(case))
