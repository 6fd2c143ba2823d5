"""Help as plain text, its options grouped in panels; it starts at once, and can be copied and searched."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from onnxdecomp.cli.options import PANELS


class PanelCommand(TyperCommand):
    """A command whose help lists its options by the panel that each is declared for."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel; what has no panel comes last."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        order = ["Arguments", *PANELS, "Options"]
        for title in sorted(panels, key=order.index):
            with formatter.section(title):
                formatter.write_dl(panels[title])
