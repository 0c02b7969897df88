"""How an ingest shows how far it is: a bar on a terminal, a line every few seconds elsewhere (a log, a Ray job)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from pipeline.ingest import Progress

EVERY_SECONDS = 2.0

Say = Callable[[str], None]


@contextmanager
def shown(console: Console, say: Say) -> Iterator[Callable[[Progress], None]]:
    """What to hand to `ingest` as its progress."""
    if not console.is_terminal:
        yield progress_lines(say)
        return
    columns = (TextColumn("ingest"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("ingest", total=None, speed="")
        yield lambda now: bar.update(task, completed=now.done, total=max(now.total, now.done), speed=speed(now))


def progress_lines(say: Say, every_seconds: float = EVERY_SECONDS) -> Callable[[Progress], None]:
    """A line every few seconds, and one at the end."""
    last, ended = time.monotonic(), False

    def show(now: Progress) -> None:
        nonlocal last, ended
        if not now.total or ended or (time.monotonic() - last < every_seconds and now.done < now.total):
            return
        last, ended = time.monotonic(), now.done >= now.total
        say(f"ingest {now.done:,}/{now.total:,} images, {now.rejected:,} rejected, {speed(now)}")

    return show


def speed(now: Progress) -> str:
    """Images and megabytes a second, and the time left."""
    seconds = max(now.seconds, 1e-9)
    left = (now.total - now.done) * seconds / max(now.done, 1)
    text = f"{now.done / seconds:,.0f} images/s, {now.bytes / seconds / 1e6:,.1f} MB/s"
    return f"{text}, {left:,.0f} s left" if now.done < now.total else text
