"""`rectrain data`: convert raw data to shards, and look at shards."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rectrain.api.base import ApiModel
from rectrain.api.data import DataSource, SourceFormat
from rectrain.api.errors import UserError
from rectrain.api.features import Feature, Label
from rectrain.api.job_rules import COLUMN_RULES

if TYPE_CHECKING:
    from pydantic import ValidationError

    from rectrain.api.job import RecTrainingJob
    from rectrain_jobs.data.convert import Conversion, Progress
    from rectrain_jobs.data.formats import Definition
    from rectrain_jobs.data.inspect import ColumnReport, DatasetReport

_Model = TypeVar("_Model", bound=ApiModel)


class _Declared(ApiModel):
    """Features and labels that options declare."""

    RULES = COLUMN_RULES

    features: list[Feature]
    """The features."""
    labels: list[Label]
    """The labels."""


_OPTION_OF_FIELD = {
    "uri": "--input",
    "validationUri": "--validation-input",
    "validationFraction": "--validation-fraction",
    "columns": "--column",
    "delimiter": "--delimiter",
    "rows": "--rows",
    "seed": "--seed",
}

_FORMATS = [str(name) for name in SourceFormat]
_CONVERT_EPILOG = """\b
Examples:
  rectrain data convert --job job.yaml
  rectrain data convert --job job.yaml --set data.source.validationFraction=0.1 --overwrite
  rectrain data convert --job job.yaml --if-needed
  rectrain data convert --format Interactions --input train.txt.gz --validation-input test.txt.gz --output shards
  rectrain data convert --format Synthetic --rows 1000000 --output s3://bucket/synthetic --endpoint-url http://minio:9000
  rectrain data convert --format Triples --input ratings.csv --validation-fraction 0.1 --output shards \\
      --feature user_id:Categorical:encoding=Vocabulary:cardinality=100000 \\
      --feature age:Dense:transform=Standard --label rating:Regression
"""
_INSPECT_EPILOG = """\b
Examples:
  rectrain data inspect shards/train
  rectrain data inspect s3://bucket/shards/train --job job.yaml
  rectrain data inspect shards/train --json
"""


@click.group()
def data() -> None:
    """Convert raw data to shards, and look at shards."""


@data.command(epilog=_CONVERT_EPILOG)
@click.option(
    "--job",
    "job_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Job file that says what to convert; other options override it.",
)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the job.")
@click.option("--format", "format_", type=click.Choice(_FORMATS, case_sensitive=False), help="Format of the raw data.")
@click.option("--input", "input_", metavar="URI", help="Raw training data: a file, a folder or a pattern.")
@click.option("--validation-input", metavar="URI", help="Raw validation data, where it is separate.")
@click.option("--validation-fraction", type=float, help="Share of the rows to hold out, without validation data.")
@click.option("--output", metavar="URI", help="Folder for the shards, in train/ and validation/ below it.")
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="NAME:KIND[:OPTION=VALUE]...",
    help="Declare a feature. Without a job and this, the format's own features are taken.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME:TASK[:OPTION=VALUE]...", help="Declare a label.")
@click.option(
    "--column", "columns", multiple=True, metavar="NAME=COLUMN", help="The source's column for a feature or label."
)
@click.option("--delimiter", help="Triples: the column separator.")
@click.option("--rows", type=int, help="Synthetic: number of training rows.")
@click.option("--seed", type=int, help="Synthetic: seed of the rows.")
@click.option("--endpoint-url", help="Endpoint of an S3-compatible server.")
@click.option("--overwrite", is_flag=True, help="Replace what is at the output.")
@click.option(
    "--if-needed",
    is_flag=True,
    help="Convert a job's data only if shards are missing or no longer as the job wants them, as `rectrain run` does.",
)
def convert(
    job_file: Path | None,
    overrides: tuple[str, ...],
    output: str | None,
    features: tuple[str, ...],
    labels: tuple[str, ...],
    endpoint_url: str | None,
    overwrite: bool,
    if_needed: bool,
    **source_options: Any,
) -> None:
    """Convert raw data to MDS shards, with features.json and dataset.json beside them.

    Everything comes from a job file, or from options. Nothing is published unless all of the data is right.
    """
    from dataclasses import replace

    from rectrain_jobs.data.convert import convert as convert_data
    from rectrain_jobs.data.convert import gives_validation
    from rectrain_jobs.data.infer import infer_definition

    job = _load_job(job_file, overrides)
    if if_needed:
        others = (output, features, labels, endpoint_url, overwrite, *source_options.values())
        if job is None or job.spec.data.source is None or any(option not in (None, (), False) for option in others):
            raise UserError("--if-needed: goes with a --job that has data.source, and --set, alone")
        _convert_if_needed(job)
        return
    definition = _definition(job, _source_fields(source_options), endpoint_url)
    if features:
        definition = replace(definition, features=[_declared(Feature, "kind", text, "--feature") for text in features])
    if labels:
        definition = replace(definition, labels=[_declared(Label, "task", text, "--label") for text in labels])
    _check_declared(definition)
    train, validation = _targets(job, output)
    definition = replace(definition, hold_out=validation is not None)
    if not gives_validation(definition):
        validation = None
    with conversion_progress() as progress:
        if not definition.features:
            progress.say(f"Finding the features of {definition.source.format}.")
            given_labels = definition.labels
            definition = infer_definition(definition)
            definition = replace(definition, labels=given_labels or definition.labels)
        conversion = convert_data(definition, train, validation, overwrite=overwrite, progress=progress)
    _print_conversion(conversion, {"train": train, "validation": validation}, is_inferred=job is None and not features)


@data.command(epilog=_INSPECT_EPILOG)
@click.argument("uri")
@click.option(
    "--job",
    "job_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Job file whose features the shards should have.",
)
@click.option("--endpoint-url", help="Endpoint of an S3-compatible server.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(uri: str, job_file: Path | None, endpoint_url: str | None, as_json: bool) -> None:
    """Show what is in a dataset of shards, and check it against a job."""
    from rectrain_jobs.data.inspect import inspect_dataset

    job = _load_job(job_file, ())
    report = inspect_dataset(uri, job.spec if job else None, _storage(job, endpoint_url))
    if as_json:
        click.echo(json.dumps(asdict(report), indent=1))
    else:
        _print_report(report)
    if report.problems:
        against = str(job_file) if job_file else "its features.json"
        raise UserError(f"{report.uri}: does not fit {against}: {'; '.join(report.problems)}")


def _convert_if_needed(job: "RecTrainingJob") -> None:
    from rectrain_jobs.data.convert import ensure_converted

    with conversion_progress() as progress:
        conversion = ensure_converted(job.spec, progress)
    validation = job.spec.data.validation
    uris = {"train": job.spec.data.train.uri, "validation": validation.uri if validation else None}
    if conversion is None:
        click.echo(f"{uris['train']}: is as the job wants it")
    else:
        _print_conversion(conversion, uris, is_inferred=False)


def _load_job(path: Path | None, overrides: tuple[str, ...]) -> "RecTrainingJob | None":
    if path is None:
        if overrides:
            raise UserError(f"--set {overrides[0]}: needs --job, whose fields it changes")
        return None
    from rectrain.api.loading import load_job
    from rectrain_jobs.resolution import resolve_paths

    return resolve_paths(load_job(path, overrides), path.absolute().parent)


def _source_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of DataSource that options set."""
    names = {
        "format_": "format",
        "input_": "uri",
        "validation_input": "validationUri",
        "validation_fraction": "validationFraction",
    }
    fields = {names.get(option, option): value for option, value in options.items() if value not in (None, ())}
    if "format" in fields:
        fields["format"] = next(name for name in SourceFormat if str(name).lower() == fields["format"].lower())
    if "columns" in fields:
        fields["columns"] = dict(_pair(text, "--column") for text in fields["columns"])
    return fields


def _definition(job: "RecTrainingJob | None", fields: dict[str, Any], endpoint_url: str | None) -> "Definition":
    from pydantic import ValidationError

    from rectrain_jobs.data.formats import Definition

    base = job.spec.data.source.model_dump(exclude_unset=True) if job and job.spec.data.source else {}
    if not base and "format" not in fields:
        raise UserError("--format: is required without a job that has data.source: one of " + ", ".join(_FORMATS))
    try:
        source = DataSource.model_validate({**base, **fields})
    except ValidationError as error:
        raise UserError(_source_problems(error)) from None
    spec = job.spec if job else None
    return Definition(
        source=source,
        features=spec.features if spec else [],
        labels=spec.labels if spec else [],
        user_id=spec.model.user_id if spec else "user_id",
        item_id=spec.model.item_id if spec else "item_id",
        storage=_storage(job, endpoint_url),
    )


def _storage(job: "RecTrainingJob | None", endpoint_url: str | None) -> Any:
    from rectrain_jobs.storage import Storage

    storage = job.spec.data.storage if job else None
    endpoint = endpoint_url or (storage.endpoint_url if storage else None)
    return Storage(endpoint_url=endpoint, region=storage.region if storage else None)


def _targets(job: "RecTrainingJob | None", output: str | None) -> tuple[str, str | None]:
    if output is not None:
        if not output.strip():
            raise UserError("--output: must name the folder for the shards, and is empty")
        return f"{output.rstrip('/')}/train", f"{output.rstrip('/')}/validation"
    if job is None:
        raise UserError("--output: is required without --job: the folder for the shards")
    return job.spec.data.train.uri, job.spec.data.validation.uri if job.spec.data.validation else None


def _declared(model: type[_Model], second: str, text: str, option: str) -> _Model:
    from pydantic import ValidationError

    from rectrain.api.yaml_text import load_yaml

    name, _, rest = text.partition(":")
    value, *settings = rest.split(":")
    fields = {"name": name, second: value}
    for setting in settings:
        key, written = _pair(setting, f"{option} {text}")
        try:
            fields[key] = load_yaml(written)
        except ValueError as error:
            raise UserError(f"{option} {text}: {key}: is not valid YAML: {error}") from None
    try:
        return model.model_validate_json(json.dumps(fields, default=str), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        part = "features" if model is Feature else "labels"
        raise UserError(f"{option} {text}: {_joined(error, ('spec', part, 0))}") from None


def _check_declared(definition: "Definition") -> None:
    """Check features, labels and columns against each other, as a job's are."""
    from pydantic import ValidationError

    names = {*(feature.name for feature in definition.features), *(label.name for label in definition.labels)}
    for name, column in definition.source.columns.items():
        if name not in names:
            raise UserError(f"--column {name}={column}: must name a feature or a label")
    try:
        _Declared(features=list(definition.features), labels=list(definition.labels))
    except ValidationError as error:
        raise UserError(_joined(error, ("spec",))) from None


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise UserError(f"{option} {text}: must be name=value")
    return key, value


def _source_problems(error: "ValidationError") -> str:
    """Return what is wrong with the source, by the options that set its fields."""
    from rectrain.api.loading import format_problem, problems_of

    problems = [
        problem._replace(path=(_OPTION_OF_FIELD.get(str(problem.path[0]), problem.path[0]), *problem.path[1:]))
        for problem in problems_of(error, ("spec", "data", "source"))
    ]
    return "; ".join(map(format_problem, problems))


def _joined(error: "ValidationError", path: tuple[str | int, ...]) -> str:
    from rectrain.api.loading import format_problem, problems_of

    return "; ".join(map(format_problem, problems_of(error, path)))


@contextmanager
def conversion_progress() -> Iterator["Progress"]:
    """Show progress on standard error: a bar in a terminal, lines elsewhere."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,} rows"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        yield _Bars(bar)


class _Bars:
    """Shows a line with a count for each stage."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._tasks: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr) if self._bar.disable else self._bar.console.print(text)

    def advance(self, stage: str, rows: int) -> None:
        """Count rows."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=None)
        self._bar.update(self._tasks[stage], advance=rows)


def _print_conversion(conversion: "Conversion", uris: dict[str, str | None], is_inferred: bool) -> None:
    if is_inferred:
        import yaml

        features = [f.model_dump(mode="json", by_alias=True, exclude_none=True) for f in conversion.features.features]
        click.echo("The features, for a job file:")
        click.echo(yaml.safe_dump({"features": features}, sort_keys=False, default_flow_style=None), nl=False)
    for split, record in conversion.records.items():
        click.echo(f"{uris[split]}: {record.rows:,} {split} rows")
        for name, statistics in record.labels.items():
            if "mean" in statistics:
                click.echo(f"  {name}: mean {statistics['mean']:.6g}")
        if split == "validation" and "bayes" in record.metadata:
            click.echo(f"  best possible on these rows (the planted model): {_bayes_text(record.metadata['bayes'])}")


def _bayes_text(bayes: dict[str, float]) -> str:
    """Return what the planted model reaches; there is no AUC where all labels are alike."""
    return f"AUC {bayes.get('auc', float('nan')):.5f}, log loss {bayes['logLoss']:.5f}"


def _print_report(report: "DatasetReport") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    sizes = f"{decimal(report.smallest_shard)} to {decimal(report.largest_shard)}"
    console.print(
        f"{report.uri}: {report.rows:,} rows, {report.shards} shard{'s' * (report.shards > 1)}, "
        f"{decimal(report.bytes)} ({sizes} each)",
        highlight=False,
        soft_wrap=True,
    )
    if report.record is not None:
        record = report.record
        console.print(
            f"{record.split} rows from {record.source['format']}, by rectrain {record.rectrain_version}",
            highlight=False,
        )
        if "bayes" in record.metadata:
            console.print(f"best possible: {_bayes_text(record.metadata['bayes'])}", highlight=False)
    headers = ["column", "kind", "encoding", "range", "mean", "cardinality", "missing", "unknown", "length"]
    cells = [_cells(column) for column in report.columns]
    used = [place for place in range(len(headers)) if any(row[place] for row in cells)]
    table = Table(box=SIMPLE_HEAD)
    for place in used:
        table.add_column(headers[place], no_wrap=True)
    for row in cells:
        table.add_row(*(row[place] for place in used))
    console.print(table)
    for column in report.columns:
        if column.shares is not None:
            shares = ", ".join(f"{number}: {share:.4f}" for number, share in enumerate(column.shares[:20]))
            console.print(f"{column.name}: share of each class: {shares}", highlight=False)


def _cells(column: "ColumnReport") -> list[str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.5g}"

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    span = "" if column.minimum is None else f"{number(column.minimum)} to {number(column.maximum)}"
    length = "" if column.mean_length is None else f"{column.mean_length:.1f} ({share(column.empty)} empty)"
    return [
        column.name,
        column.kind,
        column.encoding,
        span,
        number(column.mean),
        number(column.cardinality),
        share(column.missing),
        share(column.out_of_vocabulary),
        length,
    ]
