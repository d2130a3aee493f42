"""What all explorers share: controls in a grid, a picture below them, and the same picture where there are no widgets."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WIDE = {"width": "auto", "min_width": "0"}
MOST = "1120px"
"""Width of a grid of controls, at most: on a wide screen they stay together, over the picture."""


class Explorer:
    """Controls above a picture that follows them.

    view      a plain function of the controls' values that returns a figure, or a plotly figure's plain data, which is shown unchecked
    controls  {argument of `view`: ipywidgets control}; all of them can be used from the keyboard
    under     the names of the controls that stand in a row under the picture instead
    below     further widgets under the picture and these, such as buttons
    static    the same picture without scripts, for headless runs and PDFs; by default `view`
    columns   of the grid of controls above

    Controls that do not go together (`view` raises ValueError) show what it says in the picture's place.
    `values` are the controls' values, `figure()` the present picture: what is seen can be kept and made again.
    """

    def __init__(
        self,
        view: Callable,
        controls: Mapping[str, Any],
        *,
        under: Sequence[str] = (),
        below: Sequence = (),
        static: Callable | None = None,
        columns: int = 3,
    ):
        from ipywidgets import VBox, interactive_output

        self.view, self.controls, self.static = view, dict(controls), static or view
        above = _grid([control for name, control in self.controls.items() if name not in under], columns)
        after = [_grid([self.controls[name] for name in under], len(under))] if under else []
        self.output = interactive_output(self._show, self.controls)
        self.widget = VBox([above, self.output, *after, *below])

    def _show(self, **values) -> None:
        from IPython.display import HTML, display

        try:
            drawn = self.view(**values)
            if isinstance(drawn, dict):
                import plotly.io

                plotly.io.show(drawn, validate=False)
            else:
                display(drawn)
        except ValueError as error:
            display(HTML(_said(error)))

    @property
    def values(self) -> dict:
        return {name: control.value for name, control in self.controls.items()}

    def figure(self):
        drawn = self.view(**self.values)
        if not isinstance(drawn, dict):
            return drawn
        import plotly.graph_objects as go

        return go.Figure(drawn)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        bundle = dict(self.widget._repr_mimebundle_() or {})
        try:
            picture = self.static(**self.values)
        except ValueError as error:
            return bundle | {"text/html": _said(error), "text/plain": str(error)}
        return bundle | ({"image/png": picture._repr_png_()} if hasattr(picture, "_repr_png_") else {"text/html": picture._repr_html_()})


def _grid(controls: Sequence, columns: int):
    """Controls in rows, those of a column with their labels aligned."""
    from ipywidgets import GridBox, Layout

    for column in range(columns):
        longest = max((len(control.description) for control in controls[column::columns]), default=0)
        for control in controls[column::columns]:
            control.style, control.layout = {"description_width": f"{0.6 * longest + 1:.1f}em"}, Layout(**WIDE)
    shape = Layout(grid_template_columns=f"repeat({columns}, minmax(0, 1fr))", grid_gap="4px 18px", max_width=MOST)
    return GridBox(controls, layout=shape)


def _said(error: Exception) -> str:
    return f"<p>{html.escape(str(error))}</p>"


def choice(options, value=None, label: str = ""):
    """A drop-down of names, or {name: value}."""
    from ipywidgets import Dropdown

    return Dropdown(options=options, value=value if value is not None else _first(options), description=label)


def number(low: float, high: float, value: float, label: str, step: float | None = None, lazy: bool = False):
    """A slider over whole numbers, or over real ones where `step` is given; `lazy`: it tells its value when let go."""
    from ipywidgets import FloatSlider, IntSlider

    how = {"min": low, "max": high, "value": value, "description": label, "continuous_update": not lazy}
    return IntSlider(**how) if step is None else FloatSlider(**how, step=step, readout_format=".3g")


def steps(values, label: str):
    """A slider over some numbers, and at its left end "own": 0, which leaves what is there."""
    from ipywidgets import SelectionSlider

    return SelectionSlider(options=[("own", 0), *((f"{value:g}", value) for value in values)], value=0, description=label)


def switch(label: str, value: bool = False):
    from ipywidgets import Checkbox

    return Checkbox(value=value, description=label, indent=False)


def several(options: Sequence, value: Sequence | None = None, label: str = "", rows: int = 4):
    """A list of which several may be chosen."""
    from ipywidgets import SelectMultiple

    return SelectMultiple(options=options, value=tuple(options if value is None else value), description=label, rows=rows)


def _first(options):
    return next(iter(options.values())) if isinstance(options, Mapping) else next(iter(options))
