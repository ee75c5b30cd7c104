"""Zero-shot tasks: lm-eval's own definitions of them, asked of a model of this package."""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from converters.rules import first_line
from icp_jax.data import hub, task_sets
from icp_jax.data.hub_errors import SHOWN
from icp_jax.errors import InputError
from icp_jax.phases import Progress

ADVICE = "pip install 'icp-jax[zeroshot]'"
RESAMPLES = 1000  # for the standard errors of metrics other than means, such as perplexity
ONE_PROCESS = "DISABLE_MULTIPROC"  # lm-eval reads it
GROUP = "icp_jax"  # the name under which tasks are built with a set of the user's


class TaskScore(NamedTuple):
    """A model's score in one task. errors: standard errors over questions, by metric."""

    task: str
    questions: int
    split: str  # of the set: test or validation
    metrics: dict[str, float]  # such as acc, and acc_norm where the task has it
    errors: dict[str, float]


class TaskScores(NamedTuple):
    """A model's scores, and their mean.

    mean, standard_error: of `acc` over the tasks that have it; None if none has.
    """

    tasks: tuple[TaskScore, ...]
    mean: float | None
    standard_error: float | None
    lm_eval: str  # its version

    def record(self) -> dict[str, Any]:
        """The result as JSON values."""
        found = {score.task: score._asdict() for score in self.tasks}
        return {**self._asdict(), "tasks": found}


def evaluate_tasks(
    model: Any,
    tasks: str | Sequence[str],
    *,
    task_data: str | Path | None = None,
    limit: int | None = None,
    dtype: str = "auto",
    progress: Progress = lambda block, phase, done, total, loss: None,
) -> TaskScores:
    """Ask a language model the questions of zero-shot tasks, as lm-eval defines them.

    model: in memory, a Hugging Face folder or hub id, or a `.gguf` file. tasks: names of lm-eval,
    in a list or with commas, such as `boolq,rte`. task_data: folder of the sets, see
    `icp_jax.data.task_sets`. Unset: from the hub. limit: the first questions of each task only.
    dtype: compute dtype of the blocks. Raises InputError, also where lm-eval is not installed.
    """
    names = _names(tasks)
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    with _quiet():
        manager = _manager()
        _check(names, manager.all_tasks)
        found = _tasks(manager, names, None if task_data is None else Path(task_data).expanduser())
        return _scores(model, found, limit, dtype, progress)


def _names(tasks: str | Sequence[str]) -> list[str]:
    given = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    names = list(dict.fromkeys(name.strip() for name in given if name.strip()))
    if not names:
        raise InputError("no task given: name tasks of lm-eval, such as boolq,rte")
    return names


@cache
def _manager() -> Any:
    """lm-eval's index of its tasks, which takes it seconds to make. Raises InputError."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError(f"zero-shot tasks need lm-eval: {ADVICE}") from None
    return TaskManager()


def _check(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            advice = f"did you mean {near[0]}?" if near else "lm_eval ls tasks lists them"
            raise InputError(f"lm-eval has no task {name!r}; {advice}")


def _tasks(manager: Any, names: Sequence[str], root: Path | None) -> dict[str, Any]:
    """lm-eval's task objects by name, with their sets. Raises InputError."""
    if root is None:
        return dict(_built(manager, list(names), "the hub")["tasks"])
    found: dict[str, Any] = {}
    for name in names:
        definition = _definition(manager, name)
        changes = _changes(root, name, definition)
        given = {"group": GROUP, "task": [{"task": name, **changes}]}
        found |= _built(manager, [given], f"{root}")["tasks"]
    return found


def _definition(manager: Any, name: str) -> dict[str, Any]:
    """A task's definition, the data set and the splits of which are read. Raises InputError."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = manager.task_index[name].yaml_path
    found = load_yaml(path, resolve_func=False) if path else {}
    if not isinstance(found.get("dataset_path"), str):
        raise InputError(
            f"{name} is not a single task with a data set: name its tasks, or leave out task_data"
        )
    return found


def _changes(root: Path, name: str, definition: dict[str, Any]) -> dict[str, Any]:
    """What a task's definition becomes with a set in `root`. Raises InputError."""
    given = [definition.get(key) for key in ("test_split", "validation_split")]
    wanted = [str(split) for split in given if split]
    config = definition.get("dataset_name")
    sets = task_sets.load(root, name, definition["dataset_path"], config, wanted[0])
    if not any(split in sets for split in wanted):
        raise InputError(
            f"the set of {name} in {root} has no split {' or '.join(wanted)}, only "
            f"{', '.join(sets)}: add it, or rename one"
        )
    keys = ("training_split", "validation_split", "test_split", "fewshot_split")
    lacking = {key: None for key in keys if definition.get(key) not in sets}
    return {"custom_dataset": lambda **_: sets, "dataset_kwargs": None, **lacking}


def _built(manager: Any, specs: list[Any], place: str) -> dict[str, Any]:
    """lm-eval's tasks from names or definitions. Raises InputError."""
    try:
        return manager.load(specs)
    except Exception as error:  # datasets, jinja and the tasks' own code raise unrelated types
        name = specs[0] if isinstance(specs[0], str) else specs[0]["task"][0]["task"]
        why = f"{type(error).__name__}: {first_line(error)}"[:SHOWN]
        advice = "compare its columns with the set on the hub"
        if place == "the hub":
            advice = "connect to the network, or give a folder of sets (task_data)"
            name = " or ".join(specs)
        raise InputError(
            f"the set of {name} from {place} does not serve ({why}): {advice}"
        ) from None


def _scores(
    model: Any, tasks: dict[str, Any], limit: int | None, dtype: str, progress: Progress
) -> TaskScores:
    import lm_eval

    from icp_jax.evaluation.zero_shot import IcpJaxLM

    asked = IcpJaxLM(model, dtype, progress=progress)
    try:
        for task in tasks.values():
            task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=0)
        found = lm_eval.evaluate(
            asked, {"tasks": tasks}, limit, bootstrap_iters=RESAMPLES, log_samples=False
        )
    finally:
        asked.close()
    scores = tuple(_score(name, task, found) for name, task in tasks.items())
    accuracies = [s for s in scores if "acc" in s.metrics]
    mean = error = None
    if accuracies:
        mean = math.fsum(s.metrics["acc"] for s in accuracies) / len(accuracies)
        squares = math.fsum(s.errors.get("acc", math.nan) ** 2 for s in accuracies)
        error = math.sqrt(squares) / len(accuracies)
    return TaskScores(scores, mean, _number(error), lm_eval.__version__)


def _score(name: str, task: Any, found: Any) -> TaskScore:
    """One task's part of lm-eval's results."""
    metrics, errors = {}, {}
    for key, value in found["results"][name].items():
        metric, _, kind = key.partition(",")
        if not kind or not isinstance(value, int | float):
            continue
        if metric.endswith("_stderr"):
            if (error := _number(value)) is not None:
                errors[metric.removesuffix("_stderr")] = error
        else:
            metrics[metric] = float(value)
    config = task.config
    split = config.test_split or config.validation_split
    return TaskScore(name, found["n-samples"][name]["effective"], split, metrics, errors)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's log and the progress bars of its libraries."""
    import datasets
    import tqdm

    bars, before = datasets.are_progress_bars_disabled(), tqdm.tqdm.__init__
    logger = logging.getLogger("lm_eval")
    level = logger.level

    def silent(self: Any, *args: Any, **options: Any) -> None:
        before(self, *args, **{**options, "disable": True})

    alone = os.environ.get(ONE_PROCESS)
    try:
        os.environ[ONE_PROCESS] = "1"  # its pool would fork a process in which JAX has threads
        logger.setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        tqdm.tqdm.__init__ = silent
        with hub.quiet(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        del os.environ[ONE_PROCESS]
        if alone is not None:
            os.environ[ONE_PROCESS] = alone
        tqdm.tqdm.__init__ = before
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
