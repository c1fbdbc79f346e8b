"""Online prediction: what was fitted offline answers single requests from the same code, and data frames too."""

from rectrain_jobs.pipeline.boosted_trees import BoostedTrees
from rectrain_jobs.pipeline.categorical import Hashing, Identity, StringIndexer
from rectrain_jobs.pipeline.dense import Bucketizer, Log, MinMaxScaler, StandardScaler, Unscaled
from rectrain_jobs.pipeline.factorization_machine import FactorizationMachine
from rectrain_jobs.pipeline.matrix_factorization import MatrixFactorization
from rectrain_jobs.pipeline.one_hot import Cross, OneHot
from rectrain_jobs.pipeline.online_pipeline import OnlinePredictionPipeline
from rectrain_jobs.pipeline.predictor import OnlinePredictor, RawPrediction
from rectrain_jobs.pipeline.saving import load_stage, save_stage
from rectrain_jobs.pipeline.sequence import Sequence
from rectrain_jobs.pipeline.stage import Stage, State, register
from rectrain_jobs.pipeline.transformer import ColumnTransformer, FeatureTransformer
from rectrain_jobs.pipeline.values import ValueRefusedError
from rectrain_jobs.pipeline.vector_models import LogisticRegression, VectorPredictor
from rectrain_jobs.pipeline.vector_scaling import UnitVariance
from rectrain_jobs.pipeline.vectorizer import DictionaryVectorizer
from rectrain_jobs.pipeline.vectors import SparseVector, VectorBatch

__all__ = [
    "BoostedTrees",
    "Bucketizer",
    "ColumnTransformer",
    "Cross",
    "DictionaryVectorizer",
    "FactorizationMachine",
    "FeatureTransformer",
    "Hashing",
    "Identity",
    "Log",
    "LogisticRegression",
    "MatrixFactorization",
    "MinMaxScaler",
    "OneHot",
    "OnlinePredictionPipeline",
    "OnlinePredictor",
    "RawPrediction",
    "Sequence",
    "SparseVector",
    "Stage",
    "StandardScaler",
    "State",
    "StringIndexer",
    "UnitVariance",
    "Unscaled",
    "ValueRefusedError",
    "VectorBatch",
    "VectorPredictor",
    "load_stage",
    "register",
    "save_stage",
]
