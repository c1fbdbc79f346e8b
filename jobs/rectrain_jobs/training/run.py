"""One worker process: join, train, record, publish. The entry of `python -m rectrain_jobs.training`."""

import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rectrain.api import UserError
from rectrain.api.features import Feature
from rectrain.api.job import RecTrainingJob
from rectrain_jobs.bundle import write_bundle
from rectrain_jobs.features import FeatureSet
from rectrain_jobs.features.feature_set import FEATURES_FILE
from rectrain_jobs.resolution import storage_options
from rectrain_jobs.storage import open_store
from rectrain_jobs.tracking import DatasetInput, MlflowTracker, PointLog, TrackingSummary
from rectrain_jobs.training.data import open_dataset
from rectrain_jobs.training.distributed import join_ranks
from rectrain_jobs.training.output import BUNDLE, JOB, METRICS, PLAN, POINTS, TRACKING_STATE, RunOutput
from rectrain_jobs.training.progress import ProgressDisplay, metrics_table
from rectrain_jobs.training.progress_server import progress_server
from rectrain_jobs.training.publish import publish_bundle
from rectrain_jobs.training.termination import leave_results, results_text
from rectrain_jobs.training.trainer import DivergedError, StopRequestedError, Trainer


def run_worker(job: RecTrainingJob, output_uri: str) -> None:
    """Train a job as one of its ranks.

    Args:
        job: The job, with absolute URIs.
        output_uri: Folder of the results.

    Raises:
        UserError: The job, its data or its output is wrong.
        DivergedError: The loss is not finite.
        StopRequestedError: SIGTERM came; a checkpoint is saved.
    """
    ranks = join_ranks()
    started = time.monotonic()
    output = RunOutput(output_uri, storage_options(job))
    uid = output.identity(job) if ranks.is_first else None
    uid = ranks.broadcast(uid)
    assert uid is not None
    features = features_of(job)
    if ranks.is_first:
        output.fetch(POINTS)
    points = PointLog(output.local / POINTS)
    server = progress_server() if ranks.is_first else None

    def tell(progress: dict[str, Any]) -> None:
        output.write_progress(progress)
        if server is not None:
            server.update(progress)

    display = ProgressDisplay(ranks.is_first, tell)
    trainer = Trainer(job, ranks, output, points, display)
    lineage = _lineage(job, trainer, uid)
    tracker = _tracker(job, output, points, uid, lineage, trainer) if ranks.is_first else None
    try:
        metrics = trainer.train()
        bundle_uri = f"{output.uri}/{BUNDLE}"
        write_bundle(
            open_store(bundle_uri, storage_options(job)),
            job,
            trainer.model_state(),
            features,
            metrics=metrics,
            lineage=lineage | {"step": trainer.model_step},
            item_counts=trainer.item_counts,
            group=ranks.control,
        )
    except BaseException as error:
        display.stop()
        if tracker is not None:
            tracker.finish("KILLED" if isinstance(error, StopRequestedError) else "FAILED")
        if ranks.is_first:
            output.keep(POINTS)
        raise
    patience, results = ranks.patience(), None
    if ranks.is_first:
        output.write_metrics(metrics)
        output.write_job(job)
        output.keep(POINTS)
        summary = _finish(tracker, output, bundle_uri)
        # Before the result, with which the run has ended: one that is killed while it publishes does so again.
        publishes = job.spec.publish.index is not None
        version = publish_bundle(job, bundle_uri, display.say).name if publishes else None
        output.write_result(
            {
                "uid": uid,
                "step": trainer.progress.step,
                "seconds": round(time.monotonic() - started, 1),
                "bundle": bundle_uri,
                "indexVersion": version,
                "mlflowRunId": summary.run_id if summary is not None else None,
                "trackingUri": summary.tracking_uri if summary is not None else None,
                "unsentPoints": summary.unsent_points if summary is not None else 0,
            }
        )
        results = results_text(
            metrics,
            mlflow_run_id=summary.run_id if summary is not None else None,
            checkpoint_uri=trainer.checkpointer.newest_uri(),
            model_uri=bundle_uri,
            index_name=version,
        )
        display.stop()
        _report(display, metrics, output, bundle_uri, summary)
    results = patience.broadcast(results)
    assert results is not None
    if ranks.local_rank == 0:
        leave_results(results)
    ranks.barrier()
    if server is not None:
        server.close()
    dist.destroy_process_group()


def features_of(job: RecTrainingJob) -> FeatureSet:
    """Return the features as they were fitted when the shards were made; shards from elsewhere may have none.

    Raises:
        UserError: The shards were made with other definitions, or a feature needs to be fitted and was not.
    """
    store = open_store(job.spec.data.train.uri, storage_options(job))
    wanted = FeatureSet(job.spec.features)
    if not store.exists(FEATURES_FILE):
        if wanted.needs_fit:
            raise UserError(
                f"{store.uri}: has no {FEATURES_FILE}, and feature {wanted.fitted_names[0]} learns from the data; "
                "make the shards with `rectrain data convert`"
            )
        return wanted
    found = FeatureSet.load(store)
    made_with = {feature.name: feature for feature in found.features}
    for feature in job.spec.features:
        if feature.name not in made_with:
            raise UserError(f"{store.uri}: was made without feature {feature.name}; convert the data again")
        if feature != made_with[feature.name] and _affects_data(feature) != _affects_data(made_with[feature.name]):
            raise UserError(
                f"{store.uri_of(FEATURES_FILE)}: feature {feature.name} was "
                f"{made_with[feature.name].model_dump_json(exclude_defaults=True)} when the shards were made, and is "
                f"{feature.model_dump_json(exclude_defaults=True)} in the job; convert the data again"
            )
    return found.select([feature.name for feature in job.spec.features])


def _affects_data(feature: Feature) -> Feature:
    """Return the feature without what only the model looks at."""
    return feature.model_copy(update={"side": None, "embedding_dim": None, "table": None, "pooling": None})


def _tracker(
    job: RecTrainingJob, output: RunOutput, points: PointLog, uid: str, lineage: dict[str, Any], trainer: Trainer
) -> MlflowTracker | None:
    mlflow = job.spec.tracking.mlflow
    if not mlflow.enabled:
        return None
    folder = Path.cwd() if output.is_remote else output.local.parent
    uri = mlflow.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
    read = {"training": trainer.data.dataset}
    if job.spec.data.validation is not None and trainer.validation is not None:
        read["validation"] = open_dataset(job, job.spec.data.validation.uri, [])
    commit = lineage["gitCommit"]
    return MlflowTracker(
        job,
        uid=uid,
        tracking_uri=uri,
        points=points,
        state_path=output.local / TRACKING_STATE,
        inputs=[DatasetInput(data.uri, data.digest, data.num_samples, context) for context, data in read.items()],
        tags={"mlflow.source.git.commit": commit} if commit else {},
    )


def _finish(tracker: MlflowTracker | None, output: RunOutput, bundle_uri: str) -> TrackingSummary | None:
    if tracker is None:
        return None
    names = (JOB, PLAN, METRICS, POINTS)
    for name in names:
        output.fetch(name)
    files = [output.local / name for name in names]
    bundle = open_store(bundle_uri).local_path("bundle.json") if "://" not in bundle_uri else None
    folder = bundle.parent if bundle is not None else None
    if folder is not None:
        files.append(folder / "features.json")
    return tracker.finish("FINISHED", artifacts=files, bundle=folder, bundle_uri=bundle_uri)


def _report(
    display: ProgressDisplay,
    metrics: dict[str, float],
    output: RunOutput,
    bundle_uri: str,
    summary: TrackingSummary | None,
) -> None:
    if metrics:
        display.say(metrics_table(metrics))
    if summary is not None:
        if summary.run_id is not None:
            display.say(f"MLflow run  {summary.run_id}")
            opened = summary.tracking_uri if summary.tracking_uri.startswith("http") else ""
            display.say(f"MLflow UI   {opened or f'mlflow ui --backend-store-uri {summary.tracking_uri}'}")
        if summary.error is not None:
            display.say(
                f"MLflow at {summary.tracking_uri} could not be reached: {summary.error}; "
                f"{summary.unsent_points} points are kept in {output.local}: run again to send them"
            )
    display.say(f"Bundle      {bundle_uri}")


def _lineage(job: RecTrainingJob, trainer: Trainer, uid: str) -> dict[str, Any]:
    packages = ("rectrain", "torch", "torchrec", "mosaicml-streaming")
    return {
        "jobUid": uid,
        "job": job.spec.model_dump(mode="json", exclude_defaults=True),
        "data": {
            "uri": trainer.data.dataset.uri,
            "digest": trainer.data.dataset.digest,
            "rows": trainer.data.dataset.num_samples,
        },
        "plan": trainer.plan.to_json(),
        "seed": job.spec.training.seed,
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
        "gitCommit": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5, cwd=Path.cwd()
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


__all__ = ["DivergedError", "StopRequestedError", "run_worker"]
