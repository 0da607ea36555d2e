"""What prints as rich tables: as text in a terminal, as HTML in a notebook."""

import io

from rich.console import Console


class Printed:
    """For classes with a `__rich__`: `str`, `repr` and a notebook show the same tables, `columns` wide."""

    columns = 110

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=self.columns, force_jupyter=False)
        console.print(self)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), record=True, width=self.columns, force_jupyter=False)
        console.print(self)
        return console.export_html(inline_styles=True, code_format="<pre style='font-size:12px'>{code}</pre>")
