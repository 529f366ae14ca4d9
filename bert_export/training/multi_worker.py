"""Training on several machines: who the workers are, and how they keep together.

TF_CONFIG says which process is which, as for all of TensorFlow's distributed training
(https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable).
Each worker computes its part of every batch with all weights;
tf.distribute.MultiWorkerMirroredStrategy adds up their gradients. The first, the chief,
alone writes what all read: the workdir is one that all workers share.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from bert_export.config import TrainConfig
from bert_export.errors import StageError, UserError

_VARIABLE = "TF_CONFIG"
# How long the chief waits for workers to notice that training has ended.
_FAREWELL_MS = 60_000


class Worker:
    """This process among those that train together."""

    def __init__(self, tf_config: Mapping[str, Any]) -> None:
        """Starts the server through which the others reach this one.

        Args:
          tf_config: `{"cluster": {"chief": [ADDRESS], "worker": [ADDRESS, ...]},
            "task": {"type": "worker", "index": 0}}`. Without a chief, the first
            worker is it.

        Raises:
          UserError: it is no such thing.
        """
        cluster = _check(tf_config)
        task = tf_config["task"]
        self.job, task_index = task["type"], int(task["index"])
        self.count = sum(map(len, cluster.values()))
        before = len(cluster.get("chief", ())) if self.job == "worker" else 0
        self.index = before + task_index
        self.is_chief = self.index == 0
        self._chief_device = f"/job:{next(iter(cluster))}/task:0"
        self._device = f"/job:{self.job}/task:{task_index}"
        # In a graph: outside of one, the strategy would take over the eager runtime,
        # which has been at work by now.
        with tf.Graph().as_default():
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy(
                tf.distribute.cluster_resolver.SimpleClusterResolver(
                    tf.train.ClusterSpec(cluster),
                    task_type=self.job,
                    task_id=task_index,
                    rpc_layer="grpc",
                )
            )
        config = tf.compat.v1.ConfigProto()
        self.strategy.configure(config)
        try:
            self._server = tf.distribute.Server(
                cluster, job_name=self.job, task_index=task_index, config=config
            )
        except tf.errors.OpError as error:
            raise UserError(
                f"{_VARIABLE}: cannot serve at {cluster[self.job][task_index]}: "
                f"{error.message}"
            ) from error

    def check(self, train: TrainConfig) -> None:
        """Raises UserError if these workers cannot train as the config says."""
        if train.use_tpu:
            raise UserError("config.train.use_tpu: not with several workers")
        if train.mentions_per_batch < self.count:
            raise UserError(
                f"config.train.mentions_per_batch: expected at least {self.count}, as "
                f"many as there are workers, found {train.mentions_per_batch}"
            )

    def run_config(self, **options: Any) -> tf.estimator.RunConfig:
        """A RunConfig of training with the others."""
        if not self.is_chief:
            options |= {
                "save_checkpoints_steps": None,
                "save_checkpoints_secs": None,
                "save_summary_steps": None,
                "log_step_count_steps": None,
            }
        session_config = options.pop("session_config") or tf.compat.v1.ConfigProto()
        session_config.allow_soft_placement = True
        # The way to tell a RunConfig which server runs its sessions.
        os.environ[_VARIABLE] = json.dumps({"session_master": self._server.target})
        try:
            return tf.estimator.RunConfig(
                train_distribute=self.strategy, session_config=session_config, **options
            )
        finally:
            del os.environ[_VARIABLE]

    @contextlib.contextmanager
    def chief_first(self, what: str) -> Iterator[None]:
        """Lets the chief do something before the others do it; each once a `what`."""
        if not self.is_chief:
            self._queue(what, "dequeue")
        yield
        if self.is_chief:
            for _ in range(1, self.count):
                self._queue(what, "enqueue")

    def leave_together(self) -> None:
        """Waits until no other worker needs this one's server any more."""
        with self.chief_first("trained"):
            pass
        if not self.is_chief:
            self._queue("left", "enqueue")
            return
        with contextlib.suppress(tf.errors.DeadlineExceededError):
            for _ in range(1, self.count):
                self._queue("left", "dequeue", timeout_in_ms=_FAREWELL_MS)

    def _queue(self, name: str, operation: str, timeout_in_ms: int = 0) -> None:
        """Puts an item into one of the chief's queues, or waits for one."""
        config = tf.compat.v1.ConfigProto(
            device_filters=[self._device, self._chief_device]
        )
        with tf.Graph().as_default(), tf.device(self._chief_device):
            queue = tf.queue.FIFOQueue(self.count, tf.bool, [[]], shared_name=name)
            call = queue.enqueue(True) if operation == "enqueue" else queue.dequeue()
            options = tf.compat.v1.RunOptions(timeout_in_ms=timeout_in_ms)
            try:
                with tf.compat.v1.Session(
                    self._server.target, config=config
                ) as session:
                    session.run(call, options=options)
            except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
                raise lost(error) from error


@functools.cache
def this_worker() -> Worker | None:
    """This process's place among workers, by TF_CONFIG; None if it works alone.

    Takes TF_CONFIG out of the environment: from it, an Estimator that evaluates or
    exports would conclude that others help it.

    Raises:
      UserError: TF_CONFIG is not what it has to be.
    """
    value = os.environ.pop(_VARIABLE, None)
    try:
        tf_config = json.loads(value) if value else {}
    except ValueError as error:
        raise UserError(f"{_VARIABLE} is not JSON: {error}") from error
    if not isinstance(tf_config, dict):
        raise UserError(f"{_VARIABLE}: expected a JSON object, found {value!r}")
    cluster = tf_config.get("cluster", {})
    if not isinstance(cluster, dict) or not all(
        isinstance(addresses, list) for addresses in cluster.values()
    ):
        raise UserError(
            f"{_VARIABLE}: expected a cluster, a list of addresses for each job, found "
            f"{json.dumps(cluster)}"
        )
    return Worker(tf_config) if sum(map(len, cluster.values())) > 1 else None


def is_chief() -> bool:
    """Whether this process evaluates and exports; not so the chief's helpers."""
    worker = this_worker()
    return worker is None or worker.is_chief


@contextlib.contextmanager
def chief_first(what: str) -> Iterator[None]:
    """`Worker.chief_first`; nothing in a process that works alone."""
    worker = this_worker()
    with worker.chief_first(what) if worker else contextlib.nullcontext():
        yield


def lost(error: Exception) -> StageError:
    """What training ends with when another worker has gone."""
    reason = str(error).strip().splitlines()[0]
    return StageError(
        f"another worker was lost ({reason}); start all again, and they go on from the "
        "last checkpoint"
    )


class OneSessionHook(tf.estimator.SessionRunHook):
    """Ends training when a worker is lost.

    TensorFlow would begin another session, with the last checkpoint but the batches
    that come next.
    """

    def __init__(self) -> None:
        self._begun = False

    def after_create_session(self, session, coord):
        """Raises StageError: the session is not the first one."""
        if self._begun:
            raise lost(tf.errors.UnavailableError(None, None, "no answer"))
        self._begun = True


def add_up(tensors: Any) -> Any:
    """The sum over all workers of a tensor or a list of tensors, on each of them."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensors
    # Workers can add up slices only if all read equally many rows.
    dense = tf.nest.map_structure(tf.convert_to_tensor, tensors)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, dense)


def _check(tf_config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The cluster, the chief's job first."""
    cluster = tf_config["cluster"]
    unknown = sorted(cluster.keys() - {"chief", "worker"})
    if unknown:
        raise UserError(
            f"{_VARIABLE}: expected the jobs chief and worker, found {unknown[0]}; "
            "every worker has all weights, and the chief evaluates"
        )
    if len(cluster.get("chief", ())) > 1:
        raise UserError(f"{_VARIABLE}: expected one chief, found {cluster['chief']}")
    task = tf_config.get("task", {})
    tasks = cluster.get(task.get("type"), ())
    index = task.get("index")
    if not str(index).isdigit() or int(index) >= len(tasks):
        raise UserError(
            f"{_VARIABLE}: expected a task of the cluster, such as "
            f'{{"type": "worker", "index": 0}}, found {json.dumps(task)}'
        )
    return {job: list(cluster[job]) for job in ("chief", "worker") if cluster.get(job)}
