"""Tracking: the run's points on disk first, then in MLflow, whether that is up or not."""

from rectrain_jobs.tracking.mlflow_run import DatasetInput, MlflowTracker, TrackingSummary
from rectrain_jobs.tracking.points import Point, PointLog

__all__ = ["DatasetInput", "MlflowTracker", "Point", "PointLog", "TrackingSummary"]
