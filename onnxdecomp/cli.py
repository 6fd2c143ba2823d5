"""The command line: parse, call, print, set the exit code.

Exit codes: 0 done; 1 a check failed, nothing was written; 2 the command cannot be carried out as given;
3 nothing to decompose, nothing was written.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import track

from onnxdecomp import __version__
from onnxdecomp.check import Baseline, Check, baseline, check
from onnxdecomp.choose import Policy, fitting_methods
from onnxdecomp.compare import compare as compare_models
from onnxdecomp.errors import OnnxdecompError, UsageError
from onnxdecomp.model import load, require_target, staged, write_text
from onnxdecomp.plan import Plan
from onnxdecomp.report import Result
from onnxdecomp.rewrite import rewrite as rewrite_model
from onnxdecomp.samples import read_feeds
from onnxdecomp.shapes import InputShapes, parse_input_shapes
from onnxdecomp.sites import survey_with_weights
from onnxdecomp.tables import check_view, fidelity_table, inspect_view, result_view

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make trained CNNs smaller and faster by tensor decomposition: ONNX in, ONNX out.",
)

ModelFile = Annotated[Path, typer.Argument(help="The ONNX model.", show_default=False)]
InputShape = Annotated[
    list[str],
    typer.Option("--input-shape", metavar="NAME:DIMS", help="Fix unknown dimensions: x:1,3,224,224."),
]
Freeze = Annotated[
    bool,
    typer.Option("--freeze-weights", help="Treat weights that are overridable graph inputs as constant."),
]
MinChannels = Annotated[
    int, typer.Option(help="No two-sided chain where a group has fewer input or output channels.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")]


def main() -> None:
    """Run the command line; errors are one line on standard error and an exit code."""
    try:
        sys.exit(app(standalone_mode=False))
    except OnnxdecompError as error:
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        _fail(error.format_message(), 2)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", 130)


def _fail(message: str, code: int) -> None:
    print(f"onnxdecomp: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _console() -> Console:
    # Where no terminal says how wide it is, lines that wrap help nobody.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160, highlight=False)


def _tracked(jobs: Sequence[T]) -> Iterable[T]:
    return track(jobs, description="factoring", console=Console(stderr=True), transient=True)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)


@app.command()
def inspect(
    model: ModelFile,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    min_channels: MinChannels = 16,
    freeze_weights: Freeze = False,
    json_file: JsonFile = None,
) -> None:
    """List every Conv: what it costs, and how it can be decomposed or why not."""
    policy = Policy(min_channels=min_channels)
    source = load(model)
    if json_file is not None:
        require_target(json_file, source.files())
    found = survey_with_weights(source, input_shapes=parse_input_shapes(input_shape), freeze=freeze_weights)
    sites = [anchor.site for anchor in found.anchors]
    if json_file is not None:
        fits = [fitting_methods(site, policy) for site in sites]
        document = {
            "sites": [s.to_dict(f) for s, f in zip(sites, fits, strict=True)],
            "notes": list(found.notes),
        }
        write_text(json_file, _json(document), source.files())
    _console().print(inspect_view(sites, policy, found.notes))


@app.command()
def rewrite(
    model: ModelFile,
    output: Annotated[
        Path | None, typer.Argument(help="Where to write the new model.", show_default=False)
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            help="0.25 (of the output channels), in=0.25,out=0.5 (per mode), 32 or in=16,out=32 (channels)."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="tucker2 or tucker1; default: whichever of the two fits.")
    ] = None,
    min_channels: MinChannels = 16,
    align: Annotated[int, typer.Option(help="Round fractions up to a multiple of this many channels.")] = 8,
    only: Annotated[str | None, typer.Option(metavar="REGEX", help="Only sites whose name matches.")] = None,
    skip: Annotated[str | None, typer.Option(metavar="REGEX", help="Keep sites whose name matches.")] = None,
    allow_slower: Annotated[
        bool, typer.Option("--allow-slower", help="Also chains that save less than a fifth of the MACs.")
    ] = False,
    fold_bn: Annotated[
        bool,
        typer.Option(
            "--fold-bn/--no-fold-bn", help="Fold BatchNormalization into its Conv before factoring."
        ),
    ] = True,
    freeze_weights: Freeze = False,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ranks from a plan, instead of --rank.")
    ] = None,
    save_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan carried out.")
    ] = None,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    run_check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Run both models and compare before anything is written."),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write no model.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Replace Convs by Tucker chains: 1×1, k×k, 1×1."""
    if output is None and not dry_run:
        raise UsageError("name the output file: onnxdecomp rewrite IN OUT --rank 0.25 (or give --dry-run)")
    policy = Policy(method=method, min_channels=min_channels, align=align, allow_slower=allow_slower)
    shapes = parse_input_shapes(input_shape)
    keep = load(model).files()
    for target in filter(None, (output, save_plan, json_file)):
        require_target(target, keep)
    chosen = Plan.load(plan) if plan is not None else None
    standard = _baseline(model, shapes, "--dry-run" if dry_run else None if run_check else "--no-check")
    result = rewrite_model(
        model,
        rank,
        plan=chosen,
        policy=policy,
        only=only,
        skip=skip,
        fold_bn=fold_bn,
        freeze_weights=freeze_weights,
        input_shapes=shapes,
        scratch=output.parent if output is not None else None,
        track=_tracked,
    )
    summary = _console()
    summary.print(result_view(result))
    if output is None or dry_run:
        outcome = Check(status="not checked", reason="--dry-run")
        _write_documents(result, outcome, keep, save_plan, json_file)
        summary.print("\ndry run: no model was written")
        return
    with staged(result.rewritten, output, keep) as candidate:
        outcome = check(standard, candidate)
        _write_documents(result, outcome, keep, save_plan, json_file)
    summary.print(check_view(outcome))
    summary.print(f"\nwrote {output}", soft_wrap=True)


def _baseline(model: Path, shapes: InputShapes, not_wanted: str | None) -> Baseline:
    if not_wanted is not None:
        return Baseline(path=model, reason=not_wanted)
    with Console(stderr=True).status("running the original"):
        return baseline(model, shapes)


def _write_documents(
    result: Result, outcome: Check, keep: set[Path], save_plan: Path | None, json_file: Path | None
) -> None:
    if save_plan is not None:
        write_text(save_plan, result.plan.to_json(), keep)
    if json_file is not None:
        write_text(json_file, _json(result.to_dict() | {"check": outcome.to_dict()}), keep)


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="The reference model.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The model to judge.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Samples: .npz with arrays named as the inputs, or .npy for one input."
        ),
    ] = None,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    json_file: JsonFile = None,
) -> None:
    """Run two models on the same inputs and say how far apart their outputs are."""
    reference = load(a)
    feeds = read_feeds(data, reference.proto) if data is not None else None
    outputs = compare_models(a, b, feeds, input_shapes=parse_input_shapes(input_shape))
    if json_file is not None:
        document = {"inputs": str(data) if data else "random", "outputs": [o.to_dict() for o in outputs]}
        write_text(json_file, _json(document), reference.files() | load(b).files())
    console = _console()
    console.print(f"on {f'the samples in {data}' if data else 'random inputs'}, the outputs differ by\n")
    console.print(fidelity_table(outputs))
