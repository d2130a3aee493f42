"""Live views for JupyterLab. Headless runs show the same pictures once, at the end."""

import time

from vjepa_lab import plots


class LiveCurve:
    """Training curves that redraw themselves in a notebook: pass it as `pretrain(..., callback=LiveCurve())`.

    every  seconds between redraws, so that drawing never slows the training down.
    """

    def __init__(self, every: float = 3.0, title: str | None = None):
        from IPython.display import display
        from ipywidgets import Output

        self.every, self.title, self.records, self.drawn = every, title, [], 0.0
        self.output = Output()
        display(self.output)

    def __call__(self, record: dict) -> None:
        """Take a logged record of `pretrain`; redraw if the last drawing is old enough."""
        self.records.append(record)
        if len(self.records) > 1 and time.monotonic() - self.drawn >= self.every:
            self.draw()

    def draw(self) -> None:
        import pandas as pd
        from IPython.display import clear_output, display

        with self.output:
            clear_output(wait=True)  # waits for the next picture, so nothing flickers
            display(plots.curves(pd.DataFrame(self.records), title=self.title))
        self.drawn = time.monotonic()
