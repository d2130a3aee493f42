"""Live views for JupyterLab. Where a notebook is read without widgets, as a page or a PDF, they do not show: end it with
`plots.curves(run.metrics())`, which draws the same curves from what the run has logged.
"""

import time

from vjepa_lab import plots


class LiveCurve:
    """Training curves that redraw themselves in a notebook: pass it as `pretrain(..., callback=LiveCurve())`.

    every  seconds between redraws, or thirty times as long as the last one took, if that is longer: drawing costs training 3 % at most.
           What is left is drawn when the cell ends.
    """

    def __init__(self, every: float = 3.0, title: str | None = None):
        from IPython.display import display
        from ipywidgets import Output

        self.every, self.title, self.records, self.due = every, title, [], 0.0
        self.shell = None  # the one that will draw what is left
        self.output = Output()
        display(self.output)

    def __call__(self, record: dict) -> None:
        """Take a logged record of `pretrain`; redraw if that is due again, else at the end of the cell."""
        from IPython import get_ipython

        self.records.append(record)
        if len(self.records) > 1 and time.monotonic() >= self.due:
            self.draw()
        elif self.shell is None and (shell := get_ipython()):
            self.shell = shell
            shell.events.register("post_run_cell", self._rest)

    def _rest(self, _=None) -> None:
        """Draw the records since the last drawing: the last ones, or those before an interruption."""
        self.shell.events.unregister("post_run_cell", self._rest)
        self.shell = None
        self.draw()

    def draw(self) -> None:
        import pandas as pd
        from IPython.display import clear_output, display

        began = time.monotonic()
        with self.output:
            clear_output(wait=True)  # waits for the next picture, so nothing flickers
            display(plots.curves(pd.DataFrame(self.records), title=self.title))
        drawn = time.monotonic()
        self.due = drawn + max(self.every, 30 * (drawn - began))
