"""A progress bar on standard error, where that is a terminal; silence elsewhere.

Runs in: the command's own process. rich is imported when there is something to draw.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shadow_client.adapter import Progress
from shadow_client.upload import OnProgress
from shadow_server.command.output import shown


@contextmanager
def progress_bar(title: str, *, is_quiet: bool = False) -> Iterator[OnProgress | None]:
    """Yield what takes a publish's progress, None where nobody would see it: the server is not asked for it then.

    Args:
        title: in front of the bar.
        is_quiet: draw nothing, as for programs.
    """
    if is_quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bar

    # No markup: `[/x]` is a name, or a stage of another server's.
    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, BarColumn(24), DownloadColumn())
    console = Console(stderr=True)
    with Bar(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(shown(title), total=None)

        def tell(progress: Progress) -> None:
            bar.update(
                task,
                description=shown(f"{title}: {progress.stage}"),
                completed=progress.num_bytes or 0,
                total=progress.total_bytes,
            )

        yield tell
