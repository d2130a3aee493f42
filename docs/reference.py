"""The API reference, from the docstrings: `make docs`, or python docs/reference.py FOLDER."""

import re
import sys
from pathlib import Path

import pdoc
import pdoc.docstrings
import pdoc.render


def listed(docstring: str) -> str:
    """Docstrings say `name   what it is` in columns, continued with an indent; Markdown wants a list."""
    lines, inside = [], False
    for line in docstring.splitlines():
        if entry := re.fullmatch(r"([\w, ]*\w) {2,}(\S.*)", line):
            lines += ([] if inside else [""]) + [f"- `{entry[1]}` {entry[2]}"]
            inside = True
        elif inside and line.startswith("  "):
            lines.append(line)
        else:
            lines += ["", line] if inside and line.strip() else [line]
            inside = False
    return "\n".join(lines)


def main(folder: str = "site") -> None:
    plain = pdoc.docstrings.convert
    pdoc.docstrings.convert = lambda text, *how: plain(listed(text), *how)
    pdoc.render.configure(docformat="markdown", math=True, footer_text="vjepa_lab")
    pdoc.pdoc("vjepa_lab", output_directory=Path(folder))
    print(f"API reference:  {folder}/index.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
