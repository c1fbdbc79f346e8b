"""Columnar reader of MDS datasets: StreamingDataset's shards and exact order, decoded a batch at a time."""

from rectrain_jobs.data.mds.batches import BatchReader, ColumnBatch
from rectrain_jobs.data.mds.dataset import MDSDataset
from rectrain_jobs.data.mds.index import Column, MDSIndex
from rectrain_jobs.data.mds.order import Order, Position, World

__all__ = ["BatchReader", "Column", "ColumnBatch", "MDSDataset", "MDSIndex", "Order", "Position", "World"]
