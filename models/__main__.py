"""`python -m models`: list, fetch and export the models.

Exit status: 0 done, 1 a model could not be had, 2 wrong usage or PyTorch missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from models import NETWORKS, ModelsError, UsageError, entries, export, fetch, names

app = typer.Typer(
    help="Models to try onnxdecomp on.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command("list")
def list_models() -> None:
    """List the networks to export and the third-party files to fetch."""
    print("export NAME (from PyTorch, random weights):")
    for network in NETWORKS:
        print(f"  {network.name:<28} {'×'.join(map(str, network.shape)):<16} {network.what}")
    print("fetch NAME (third-party files, under their own licences):")
    for entry in entries():
        print(f"  {entry.name:<28} {f'{entry.megabytes:.2f} MB':<16} {entry.what} [{entry.licence}]")


@app.command("fetch")
def fetch_models(
    name: Annotated[str | None, typer.Argument(help="One of the names that `list` shows.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Fetch all of them.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep the files in.  [default: $ONNXDECOMP_CACHE or ~/.cache/onnxdecomp]"
        ),
    ] = None,
) -> None:
    """Fetch one third-party ONNX file, or all, into the cache, and print where it is."""
    if (name is None) == (not every):
        typer.echo("fetch takes a NAME or --all, and not both", err=True)
        raise typer.Exit(2)
    if name is None:
        _fetch_all(cache)
        return
    with _one_line_errors():
        print(fetch(name, cache))


@app.command("export")
def export_network(
    name: Annotated[str, typer.Argument(help="One of the names that `list` shows.")],
    out: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    opset: Annotated[int, typer.Option(help="ONNX opset, 9 to 20.")] = 17,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Leave the batch size open.")
    ] = False,
    keep_bn: Annotated[bool, typer.Option("--keep-bn", help="Do not fold BatchNormalization.")] = False,
) -> None:
    """Export one PyTorch network with random weights, and print where it is."""
    with _one_line_errors():
        print(export(name, out, seed=seed, opset=opset, dynamic_batch=dynamic_batch, keep_bn=keep_bn))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except ModelsError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error


def _fetch_all(cache: Path | None) -> None:
    failed = []
    for name in names():
        try:
            print(fetch(name, cache))
        except ModelsError as error:
            typer.echo(error, err=True)
            failed.append(name)
    if failed:
        typer.echo(f"{len(failed)} of {len(names())} failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m models")
