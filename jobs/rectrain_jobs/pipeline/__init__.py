"""Online prediction: what was fitted offline answers single requests from the same code, and data frames too."""

from rectrain_jobs.pipeline.categorical import Hashing, Identity, StringIndexer
from rectrain_jobs.pipeline.dense import Bucketizer, Log, MinMaxScaler, StandardScaler, Unscaled
from rectrain_jobs.pipeline.one_hot import Cross, OneHot
from rectrain_jobs.pipeline.saving import load_stage, save_stage
from rectrain_jobs.pipeline.sequence import Sequence
from rectrain_jobs.pipeline.stage import Stage, State, register
from rectrain_jobs.pipeline.transformer import ColumnTransformer, FeatureTransformer
from rectrain_jobs.pipeline.values import ValueRefusedError
from rectrain_jobs.pipeline.vectorizer import DictionaryVectorizer
from rectrain_jobs.pipeline.vectors import SparseVector, VectorBatch

__all__ = [
    "Bucketizer",
    "ColumnTransformer",
    "Cross",
    "DictionaryVectorizer",
    "FeatureTransformer",
    "Hashing",
    "Identity",
    "Log",
    "MinMaxScaler",
    "OneHot",
    "Sequence",
    "SparseVector",
    "Stage",
    "StandardScaler",
    "State",
    "StringIndexer",
    "Unscaled",
    "ValueRefusedError",
    "VectorBatch",
    "load_stage",
    "register",
    "save_stage",
]
