"""The conversions of an evaluation, judged and drawn by several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from autovoice_training.evaluate.conditions import PLAIN, Condition
from autovoice_training.evaluate.judging import ConverterFactory, Jury, Verdict
from autovoice_training.evaluate.pairs import Pair
from autovoice_training.evaluate.plots import draw_pair

_jury: Jury


@dataclass(frozen=True)
class Task:
    """One conversion to judge.

    Attributes:
        group: name of the set, under which it is counted.
        pair: what to convert.
        condition: what is done to it.
        drawing: PNG to draw it in; None for no drawing.
    """

    group: str
    pair: Pair
    condition: Condition = PLAIN
    drawing: Path | None = None


def judge_tasks(
    tasks: Sequence[Task],
    make_converter: ConverterFactory,
    cache: Path,
    workers: int,
    on_progress: Callable[[], None] = lambda: None,
) -> list[Verdict]:
    """Judges every conversion.

    Args:
        tasks: what to judge.
        make_converter: opens the voice under test; called once in each process, so it must pickle.
        cache: folder for what the judges said.
        workers: processes, each on one thread.
        on_progress: called after each conversion.

    Returns:
        One verdict for each task, in their order.
    """
    # Each worker is one thread of work; the libraries' own pools would only fight over the cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    verdicts: dict[int, Verdict] = {}
    # Forked children would inherit the locks of thread pools whose threads they lack.
    context = multiprocessing.get_context("spawn")
    arguments = (make_converter, cache)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_open, initargs=arguments) as pool:
        waiting: dict[Future[Verdict], int] = {
            pool.submit(_judge, task): number for number, task in enumerate(tasks)
        }
        try:
            for done in as_completed(waiting):
                verdicts[waiting[done]] = done.result()
                on_progress()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [verdicts[number] for number in range(len(tasks))]


def _open(make_converter: ConverterFactory, cache: Path) -> None:
    global _jury
    _jury = Jury(make_converter, cache)


def _judge(task: Task) -> Verdict:
    renditions = _jury.render(task.pair, task.condition)
    verdict = _jury.judge_renditions(task.pair, renditions, task.condition)
    if task.drawing is not None:
        draw_pair(renditions, verdict, task.drawing)
    return verdict
