"""What a run writes into its folder while it trains: checkpoints, a table and TensorBoard's events, a row an epoch.

Of several processes the first alone writes.
"""

from pathlib import Path
from typing import Any

from utils import checkpoint, distributed
from utils.files import write_csv


class Journal:
    """Context manager; `since` is the epoch that the run goes on with, from 0."""

    def __init__(self, folder: Path, since: int) -> None:
        self.folder, self.since = folder, since
        self.writes = distributed.rank() == 0

    def __enter__(self) -> "Journal":
        if self.writes:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.board = SummaryWriter(str(self.folder), purge_step=self.since + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self.writes:
            self.board.close()

    def save(self, state: dict[str, Any]) -> None:
        """Keep the state of the run, `last.pt`."""
        if self.writes:
            checkpoint.save(state, self.folder / "last.pt")

    def end_epoch(self, state: dict[str, Any], best: bool) -> None:
        """Keep the state of the run after an epoch, the rows of its history, and the averaged weights if the best."""
        if not self.writes:
            return
        row = state["history"][-1]
        if best:
            checkpoint.save({"average": state["average"], "row": row}, self.folder / "best.pt")
        write_csv(self.folder / "history.csv", state["history"])
        self.save(state)  # last: it says that the epoch is over
        for name, value in row.items():
            self.board.add_scalar(name, value, row["epoch"])
