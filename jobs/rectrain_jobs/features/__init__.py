"""Features: one definition, fitted on the training data, applied to batches and to single requests alike."""

from rectrain_jobs.features.feature_set import FEATURES_FILE, FeatureSet, fit
from rectrain_jobs.features.labels import LabelEncoder
from rectrain_jobs.pipeline.values import ValueRefusedError

__all__ = ["FEATURES_FILE", "FeatureSet", "LabelEncoder", "ValueRefusedError", "fit"]
