"""The pairs of an evaluation, judged and drawn by several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from autovoice_training.evaluate.dataset import Dataset
from autovoice_training.evaluate.judging import ConverterFactory, Jury, Verdict
from autovoice_training.evaluate.pairs import Pair
from autovoice_training.evaluate.plots import draw_pair

_jury: Jury


def judge_pairs(
    dataset: Dataset,
    pairs: Sequence[Pair],
    make_converter: ConverterFactory,
    cache: Path,
    workers: int,
    drawings: dict[Pair, Path],
    on_progress: Callable[[], None],
) -> list[Verdict]:
    """Judges every pair.

    Args:
        dataset: voices and sentences.
        pairs: what to convert.
        make_converter: opens the voice under test; called once in each process, so it must pickle.
        cache: folder for what the judges said.
        workers: processes, each on one thread.
        drawings: where to draw which pairs.
        on_progress: called after each pair.

    Returns:
        One verdict for each pair, in their order.
    """
    # Each worker is one thread of work; the libraries' own pools would only fight over the cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    verdicts: dict[Pair, Verdict] = {}
    # Forked children would inherit the locks of thread pools whose threads they lack.
    context = multiprocessing.get_context("spawn")
    arguments = (dataset, make_converter, cache)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_open, initargs=arguments) as pool:
        waiting: dict[Future[Verdict], Pair] = {
            pool.submit(_judge, pair, drawings.get(pair)): pair for pair in pairs
        }
        try:
            for done in as_completed(waiting):
                verdicts[waiting[done]] = done.result()
                on_progress()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [verdicts[pair] for pair in pairs]


def _open(dataset: Dataset, make_converter: ConverterFactory, cache: Path) -> None:
    global _jury
    _jury = Jury(dataset, make_converter, cache)


def _judge(pair: Pair, drawing: Path | None) -> Verdict:
    verdict = _jury.judge(pair)
    if drawing is not None:
        draw_pair(_jury.render(pair), verdict, drawing)
    return verdict
