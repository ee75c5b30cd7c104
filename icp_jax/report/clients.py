"""The clients of TensorBoard, Weights & Biases and MLflow, one class each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Values = Mapping[str, float]
PROJECT = "icp-jax"


class TensorBoard:
    """Scalars in the folder `tensorboard`, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        rows = "\n".join(f"    {name}: {value}" for name, value in settings.items())
        self.writer.add_text("settings", rows)

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, done: bool) -> None:
        self.writer.close()


class Wandb:
    """A run of the project `icp-jax`; WANDB_MODE=offline writes it into the folder only."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]):
        import wandb

        quiet = wandb.Settings(console="off", silent=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run, dir=str(folder),
            config=dict(settings), settings=quiet,
        )  # fmt: skip

    def log(self, step: int, values: Values) -> None:
        self.run.log(dict(values), step=step)

    def close(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)


class MLflow:
    """A run of the experiment `icp-jax`, on MLFLOW_TRACKING_URI or in a database in the folder."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        self.client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        self.run = self.client.create_run(experiment, run_name=run).info.run_id
        told = [Param(name, str(value)) for name, value in settings.items() if value is not None]
        self.client.log_batch(self.run, params=told)

    def log(self, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self, done: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if done else "FAILED")


CLIENTS: dict[str, Callable[[Path, str, Mapping[str, Any]], Any]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
}
