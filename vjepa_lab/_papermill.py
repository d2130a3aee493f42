"""A papermill engine whose kernel can be interrupted, and whose bar shows the bar of the running cell."""

import re
import sys
import time
from functools import partial
from html import unescape
from queue import Empty

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

NAME = "vjepa_lab"
LOOK_AGAIN_S = 1.0


class Stopped(Exception):
    """Raised between cells once the execution was asked to stop."""


class Client(PapermillNotebookClient):
    """Runs the cells; `control` (see notebook.py) learns the kernel and the cell, and says whether to go on."""

    def __init__(self, nb_man, control, **traits):
        super().__init__(nb_man, **traits)
        self.control, self.inner = control, ""
        self.relay = bool(nb_man.pbar) and sys.stderr.isatty()

    def create_kernel_manager(self):
        self.control.kernel = super().create_kernel_manager()
        return self.control.kernel

    def start_new_kernel_client(self):
        client = super().start_new_kernel_client()
        client.shell_channel.get_msg = partial(_noticed, client.shell_channel.get_msg)
        return client

    def execute_cell(self, cell, cell_index, **kwargs):
        if cell.cell_type != "code":
            return cell
        if self.control.stopped:
            raise Stopped
        self.control.cell = _called(cell, self.code_cells_executed + 1)
        self._show("")
        super().execute_cell(cell, cell_index, **kwargs)
        if self.control.stopped:  # the cell caught the interrupt itself
            raise Stopped
        return cell

    def handle_comm_msg(self, outs, msg, cell_index):
        super().handle_comm_msg(outs, msg, cell_index)
        text = msg["content"].get("data", {}).get("state", {}).get("value")
        if self.relay and isinstance(text, str):
            text = " ".join(unescape(text).split())  # tqdm's spaces are of a kind that browsers keep
            if name := re.fullmatch(r"(.*?):? *\d+%", text):  # left of a tqdm widget's bar
                self.inner = name[1]
            elif re.match(r"[\d.]+[kMG]?/[\d.]+[kMG]? \[", text):  # right of it
                self._show(f"{self.inner} {text}".strip())

    def _show(self, text: str) -> None:
        if self.nb_man.pbar is not None:
            self.nb_man.pbar.set_postfix_str(text, refresh=self.relay)


async def _noticed(get_msg, timeout=None):
    """A channel's next message, also one whose arrival nobody was told of; raises Empty after `timeout` seconds.

    nbclient answers what an `Output` widget shows by a message of its own. A cell's reply that comes at that moment lies in the socket,
    but the socket tells of it once only, and that was then: a run would wait for ever (nbclient, issue 312). So it looks again.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = LOOK_AGAIN_S if end is None else min(LOOK_AGAIN_S, max(0, end - time.monotonic()))
        try:
            return await get_msg(timeout=left)
        except Empty:
            if end is not None and time.monotonic() >= end:
                raise


def _called(cell, count: int) -> str:
    """A cell by its first line of code: `In [4] (run = pretrain(...))`)."""
    code = (line.strip() for line in cell.source.splitlines())
    first = next((line for line in code if line and not line.startswith("#")), "empty")
    return f"In [{count}] ({first if len(first) <= 60 else first[:57] + '...'})"


class Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, control, connection, folder, timeout, **_):
        """`connection` sets traits of the kernel manager, `folder` is the kernel's working folder, `timeout` counts seconds per cell."""
        Client(
            nb_man,
            control,
            kernel_name=kernel_name,
            config=Config(KernelManager=connection),
            resources={"metadata": {"path": folder}},
            timeout=timeout,
            startup_timeout=120,
        ).execute()


papermill_engines.register(NAME, Engine)
