"""The options that several commands take, each with its panel in the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

# The panels, in the order in which help shows them.
GOAL, RANKS, SAMPLES, WHERE, STUDY, OUTPUT = "Goal", "Ranks", "Samples", "Where", "Study", "Output"
PANELS = (GOAL, RANKS, SAMPLES, WHERE, STUDY, OUTPUT)


def option(panel: str, *names: str, **how: Any) -> Any:
    """An option that help shows in a panel."""
    return typer.Option(*names, rich_help_panel=panel, **how)


# Standard output, as the value of an option: a file of that name is `./-`, and has its folder with it.
STDOUT = Path("-")


def document(text: str) -> Path:
    """Where a document goes: a file, or STDOUT."""
    path = Path(text)
    return Path.cwd() / path if path == STDOUT and text != str(STDOUT) else path


def picture(what: str) -> Any:
    """The option that names the picture to draw."""
    return option(OUTPUT, "--plot", metavar="FILE", help=f"Draw {what}: .png or .svg.")


ModelFile = Annotated[Path, typer.Argument(help="The ONNX model.", show_default=False)]
OutputFile = Annotated[Path, typer.Argument(help="Where to write the new model.", show_default=False)]

Linear = Annotated[bool, option(RANKS, "--linear", help="Gemm and MatMul too.")]
FEW_CHANNELS = "No two-sided chain where a group has fewer input or output channels."
MinChannels = Annotated[int, option(RANKS, help=FEW_CHANNELS)]

InputShape = Annotated[
    list[str],
    option(WHERE, "--input-shape", metavar="NAME:DIMS", help="Fix unknown dimensions: x:1,3,224,224."),
]
Freeze = Annotated[
    bool,
    option(WHERE, "--freeze-weights", help="Treat weights that are overridable graph inputs as constant."),
]
ProviderOptions = Annotated[
    list[str], option(WHERE, "--provider-option", metavar="K=V", help="Of the execution provider.")
]

PlanFile = Annotated[
    Path | None,
    option(
        OUTPUT,
        "--save-plan",
        metavar="FILE",
        parser=document,
        help="Write the plan carried out; - is standard output.",
    ),
]
JsonFile = Annotated[
    Path | None,
    option(
        OUTPUT,
        "--json",
        metavar="FILE",
        parser=document,
        help="Write the report as JSON; - is standard output, and tables go to standard error.",
    ),
]
Debug = Annotated[bool, option(OUTPUT, "--debug", help="Show whole messages and tracebacks of errors.")]
