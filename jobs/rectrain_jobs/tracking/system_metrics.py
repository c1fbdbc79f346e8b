"""Use of this machine, as MLflow's own samplers measure and name it."""

import contextlib

SYSTEM_PREFIX = "system/"


class SystemSampler:
    """Samples CPU, memory, disk, network and, where there are any, NVIDIA GPUs.

    MLflow's SystemMetricsMonitor is not used whole: its thread ends at the first call that the server does not answer.
    """

    def __init__(self) -> None:
        """Find out what can be sampled here."""
        from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no nvidia-ml-py, no GPU
            self._monitors.append(GPUMonitor())

    def sample(self) -> dict[str, float]:
        """Return the use now by MLflow's names, such as system/cpu_utilization_percentage."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values.update(
                {f"{SYSTEM_PREFIX}{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            )
            monitor.clear_metrics()
        return values
