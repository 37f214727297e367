"""Progress on the terminal while a command runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Callback = Callable[[str, int, int], None]


@contextmanager
def live_progress(stages: Mapping[str, str], *, enabled: bool) -> Iterator[Callback]:
    """A bar on stderr for every stage, by its description; gone at the end, nothing where stderr is no terminal."""
    console = Console(stderr=True)
    if not enabled or not console.is_terminal:
        yield lambda _stage, _done, _total: None
        return
    columns = TextColumn("{task.description:<32}"), BarColumn(), TextColumn("{task.completed:g}/{task.total:g}")
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        tasks = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stages[stage], total=total)
            bars.update(tasks[stage], completed=done)

        yield progress
