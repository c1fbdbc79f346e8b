"""Pure builders: from a job to the Kubernetes objects that run it. No client, no clock, no files."""

from rectrain.manifests.config_map import config_map, config_map_name
from rectrain.manifests.conversion_job import conversion_job, conversion_name
from rectrain.manifests.memory import memory_problem
from rectrain.manifests.pytorch_job import pytorch_job
from rectrain.manifests.reachability import unreachable_files
from rectrain.manifests.settings import Settings

__all__ = [
    "Settings",
    "config_map",
    "config_map_name",
    "conversion_job",
    "conversion_name",
    "memory_problem",
    "pytorch_job",
    "unreachable_files",
]
