"""Runs independent tasks on several processes or machines, by Apache Beam."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import ModuleType
from typing import Any, Protocol

import tqdm

from bert_export.errors import Failure, StageError, UserError
from bert_export.export import extras

DIRECT = "DirectRunner"
# Seconds between looks at what is finished.
_POLL = 2.0
_loading = threading.Lock()


class Work(Hashable, Protocol):
    """What is done to tasks: a frozen dataclass that travels to the workers."""

    def load(self) -> Sequence[Callable[[Any], None]]:
        """Loads what all tasks need, once a process.

        Returns:
          What does a task, step by step. Its results are files; done again, it writes
          the same ones.
        """


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who does the tasks.

    Attributes:
      runner: One of Beam's, https://beam.apache.org/documentation/#runners.
      number: Processes of the DirectRunner; None for one a core. Other runners have
        options of their own for that.
      beam_args: Options of Beam and the runner, as on a command line.
    """

    runner: str = DIRECT
    number: int | None = None
    beam_args: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuses what cannot run before anything else is done.

        Raises:
          UserError: Beam is not installed, or the options are not its own.
        """
        if importlib.util.find_spec("apache_beam") is None:
            raise UserError(
                "--runner and batch_link need Apache Beam, which cannot be found: "
                "pip install 'bert_export[beam]'"
            )
        if self.number is not None and self.runner != DIRECT:
            raise UserError(
                f"--workers is of the {DIRECT}; with --runner={self.runner} say how "
                "many in --beam_args, e.g. --beam_args=--parallelism=8"
            )
        _options(self)

    @property
    def processes(self) -> int:
        """Processes of the DirectRunner."""
        return self.number or len(os.sched_getaffinity(0))


def run(
    work: Work,
    tasks: Sequence[Any],
    workers: Workers,
    description: str,
    finished: Callable[[], int],
    steps: int = 1,
) -> None:
    """Does all tasks, in any order.

    Args:
      work: What is done.
      tasks: Small values that can be pickled.
      workers: Who does it.
      description: For the progress bar, shown where standard error is a terminal.
      finished: How many tasks have their results; asked now and then.
      steps: How many the work has. Each begins when the one before is done with all
        tasks.

    Raises:
      UserError: A task raised it, or the runner is not one of Beam's.
      StageError: A task failed otherwise.
    """
    if not tasks:
        return
    beam = _beam()
    options = _options(workers)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_progress(len(tasks), description, finished))
            runner = None
            if workers.runner == DIRECT:
                # Its workers write their own start and end to standard error.
                stack.enter_context(extras.quiet())
                runner = stack.enter_context(_processes())
            with beam.Pipeline(runner, options=options) as pipeline:
                # Without the grouping one worker would get all tasks, and with random
                # keys, as of a Reshuffle, some workers more than others.
                spread = (
                    pipeline
                    | "Tasks" >> beam.Create(list(enumerate(tasks)))
                    | "Spread" >> beam.GroupByKey()
                )
                before: list[Any] = []
                for step in range(steps):
                    done = spread | f"Step {step}" >> beam.Map(
                        functools.partial(_do, work, step), *before
                    )
                    count = done | f"Count {step}" >> beam.combiners.Count.Globally()
                    # A side input is there when all of it is.
                    before = [beam.pvalue.AsSingleton(count)]
    except Failure:
        raise
    except Exception as error:
        raise _failure(error) from error


def use_one_thread() -> None:
    """Makes this worker compute on one core; the others have workers of their own.

    Sums also come out the same then, however many workers there are.
    """
    import tensorflow as tf

    # Too late in a process that has computed before.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def _do(work: Work, step: int, numbered: Any, before: Any = None) -> None:
    del before
    with _loading:
        steps = _loaded(work)
    _, tasks = numbered
    for task in tasks:
        steps[step](task)


@functools.lru_cache(maxsize=1)
def _loaded(work: Work) -> Sequence[Callable[[Any], None]]:
    return work.load()


def _beam() -> ModuleType:
    # It warns of optional packages that it can do without.
    with extras.quiet():
        import apache_beam
    return apache_beam


def _options(workers: Workers) -> Any:
    beam = _beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    arguments = [f"--runner={workers.runner}"]
    if workers.runner == DIRECT:
        arguments += [
            f"--direct_num_workers={workers.processes}",
            "--default_sdk_harness_log_level=ERROR",
            # Without this Beam first looks for Prism, a program that it downloads.
            "--allow_unsafe_triggers",
        ]
    printed = io.StringIO()
    try:
        # argparse prints what is wrong and exits.
        with contextlib.redirect_stderr(printed):
            options = PipelineOptions([*arguments, *workers.beam_args])
            # Options that Beam does not know may be the job server's.
            options.get_all_options(retain_unknown_options=True)
            beam.Pipeline(options=options)
    except SystemExit as error:
        reason = printed.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"--beam_args: {reason}") from error
    except (ValueError, AttributeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--runner={workers.runner}: {reason}") from error
    return options


@contextlib.contextmanager
def _processes() -> Iterator[Any]:
    """The DirectRunner with processes as workers.

    Its own, `--direct_running_mode=multi_processing`, does not start where the path of
    Python has a blank, and waits for ever for a worker that was killed, as by a system
    that is short of memory.

    Raises:
      StageError: a worker died.
    """
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.transforms import environments

    def died(number: int, frame: object) -> None:
        raise StageError(
            "a worker process died, perhaps for want of memory; start again with fewer "
            "--workers: what is finished is kept"
        )

    with tempfile.TemporaryDirectory() as directory:
        # A shell runs this: it notes the worker's process id, and tells if it dies.
        command = (
            f"{shlex.quote(sys.executable)} -m apache_beam.runners.worker"
            f".sdk_worker_main & : > {shlex.quote(directory)}/$!; "
            f"wait $! || kill -USR1 {os.getpid()}"
        )
        before = signal.signal(signal.SIGUSR1, died)
        try:
            yield fn_runner.FnApiRunner(
                environments.SubprocessSDKEnvironment.from_command_string(command)
            )
        except BaseException:
            # Threads wait for the others, and this process for its threads.
            for worker in os.listdir(directory):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(worker), signal.SIGKILL)
            raise
        finally:
            # What is told too late must not end this process, as it does by default.
            default = before in (signal.SIG_DFL, None)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN if default else before)


@contextlib.contextmanager
def _progress(
    total: int, description: str, finished: Callable[[], int]
) -> Iterator[None]:
    """A progress bar, moved by a thread."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    # Standard error is taken away meanwhile.
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal,
        tqdm.tqdm(total=total, desc=description, file=terminal) as bar,
    ):

        def watch() -> None:
            while not ended.wait(_POLL):
                bar.update(finished() - bar.n)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            bar.update(finished() - bar.n)


def _failure(error: Exception) -> Failure:
    """What a worker's exception means here, where its traceback arrives as text."""
    text = re.sub(r" \[while running '[^']*'\]\s*$", "", str(error).strip())
    raised = re.findall(
        r"^(?:\w+\.)*(\w*(?:Error|Exception|Failure)): (.*)", text, re.M
    )
    if not raised:
        last = text.splitlines()[-1] if text else ""
        return StageError(f"{type(error).__name__}: {last}")
    name, message = raised[-1]
    if name == "UserError":
        return UserError(message)
    return StageError(message if name == "StageError" else f"{name}: {message}")
