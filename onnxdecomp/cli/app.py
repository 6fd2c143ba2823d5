"""The command line: parse, call, print, set the exit code.

Exit codes: 0 done; 1 a check failed, nothing was written; 2 the command cannot be carried out as given;
3 nothing to decompose, nothing was written.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import onnxdecomp
from onnxdecomp.cli.bench import bench
from onnxdecomp.cli.console import output_console, stop, to_json, tracked
from onnxdecomp.cli.options import (
    Channels,
    Data,
    Fitted,
    ImageSize,
    InputShape,
    JsonFile,
    LabelSource,
    Layout,
    Mean,
    Preset,
    SampleCount,
    Scale,
    Std,
    open_data,
    sample_sets,
)
from onnxdecomp.cli.search import search
from onnxdecomp.comparing import Baseline, Check, Quality, baseline, check, measure_quality
from onnxdecomp.comparing import compare as compare_models
from onnxdecomp.errors import OnnxdecompError, StoppedError, UsageError, printable
from onnxdecomp.factors import METHODS
from onnxdecomp.ir import (
    InputShapes,
    Site,
    data_path,
    load,
    parse_input_shapes,
    require_distinct,
    require_target,
    staged,
    survey_with_weights,
    write_file,
    write_text,
)
from onnxdecomp.planning import AUTO, Plan, Policy, SiteSpectra, find_spectra, fitting_methods
from onnxdecomp.rewriting import Request, Result
from onnxdecomp.rewriting import rewrite as rewrite_model
from onnxdecomp.sampling import BATCH, SampleSets, parse_preprocessing
from onnxdecomp.show import (
    check_view,
    fidelity_table,
    inspect_view,
    plot_spectra,
    require_plot,
    result_view,
    spectra_view,
)

UNVERIFIED = (
    "\naccuracy is unverified: --data PATH (a folder of images, an .npz or the like) fits the factors "
    "to samples and measures it"
)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make trained CNNs smaller and faster by tensor decomposition: ONNX in, ONNX out.",
)

app.command()(bench)
app.command()(search)

ModelFile = Annotated[Path, typer.Argument(help="The ONNX model.", show_default=False)]
Freeze = Annotated[
    bool,
    typer.Option("--freeze-weights", help="Treat weights that are overridable graph inputs as constant."),
]
MinChannels = Annotated[
    int, typer.Option(help="No two-sided chain where a group has fewer input or output channels.")
]
Linear = Annotated[bool, typer.Option("--linear", help="Gemm and MatMul too.")]


def main() -> None:
    """Run the command line; errors are one line on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a code page without arrows gets question marks
            stream.reconfigure(errors="replace")
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sys.exit(app(standalone_mode=False))
    except OnnxdecompError as error:
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        _fail(error.format_message(), 2)
    except UnicodeDecodeError:
        _fail("a name in the model is not UTF-8 text; the file is damaged", 2)
    except StoppedError as error:
        _fail(error.message, error.exit_code)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fail(message: str, code: int) -> None:
    print(f"onnxdecomp: {printable(' '.join(message.split()))}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(onnxdecomp.__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command()
def inspect(
    model: ModelFile,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    min_channels: MinChannels = 16,
    freeze_weights: Freeze = False,
    linear: Linear = False,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="Energy kept per mode, and what each rank rule would choose.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the spectra: .png or .svg.")] = None,
    json_file: JsonFile = None,
) -> None:
    """List every Conv, its cost, and how it can be decomposed."""
    policy = Policy(min_channels=min_channels, linear=linear)
    source = load(model)
    for target in filter(None, (plot, json_file)):
        require_target(target, source.files(), device=True)
    if plot is not None:
        require_plot(plot)
    shapes = parse_input_shapes(input_shape)
    found = survey_with_weights(source, input_shapes=shapes, freeze=freeze_weights, linear=linear)
    sites = [anchor.site for anchor in found.anchors]
    wanted = found.anchors if spectrum or plot is not None else ()
    modes = list(find_spectra(tracked(wanted, "reading spectra"), policy, source.folder))
    if plot is not None:
        write_file(plot, lambda path: plot_spectra(modes, path), source.files())
    if json_file is not None:
        write_text(json_file, to_json(_inspection(sites, policy, found.notes, modes)), source.files())
    console = output_console()
    console.print(inspect_view(sites, policy, found.notes))
    if spectrum:
        console.print(spectra_view(modes))


def _inspection(
    sites: Sequence[Site], policy: Policy, notes: Sequence[str], modes: Sequence[SiteSpectra]
) -> dict[str, Any]:
    by_name = {each.site.name: each.to_dict() for each in modes}
    entries = [site.to_dict(fitting_methods(site, policy)) for site in sites]
    for entry in entries if modes else ():
        entry["spectrum"] = by_name.get(entry["name"])
    return {"sites": entries, "notes": list(notes)}


@app.command()
def rewrite(
    model: ModelFile,
    output: Annotated[
        Path | None, typer.Argument(help="Where to write the new model.", show_default=False)
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            help="0.25, in=0.25,out=0.5, 32, in=16,out=32, energy=0.9, vbmf, params=0.5 or macs=0.5."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"{', '.join((*METHODS, AUTO))}; default: tucker2, tucker1, svd."),
    ] = None,
    linear: Linear = False,
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
    jobs: Annotated[int, typer.Option(help="Weights factored at a time; -1 is one per core.")] = -1,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ranks from a plan, instead of --rank.")
    ] = None,
    save_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan carried out.")
    ] = None,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    data: Data = None,
    samples: Fitted = None,
    labels: LabelSource = None,
    preset: Preset = None,
    image_size: ImageSize = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    channels: Channels = None,
    layout: Layout = None,
    run_check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Run both models and compare before anything is written."),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write no model.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Replace Convs by chains of smaller ones."""
    if output is None and not dry_run:
        raise UsageError("name the output file: onnxdecomp rewrite IN OUT --rank 0.25 (or give --dry-run)")
    policy = Policy(
        method=method, min_channels=min_channels, align=align, allow_slower=allow_slower, linear=linear
    )
    shapes = parse_input_shapes(input_shape)
    preprocessing = parse_preprocessing(
        preset=preset,
        image_size=image_size,
        mean=mean,
        std=std,
        scale=scale,
        channels=channels,
        layout=layout,
    )
    loaded = load(model)
    sets = sample_sets(data, samples, labels, preprocessing, loaded.proto)
    keep = loaded.files() | ({plan.resolve()} if plan is not None else set())
    keep |= sets.fitted.sources() if sets is not None else set()
    if output is not None:
        require_target(output, keep)
    for target in filter(None, (save_plan, json_file)):
        require_target(target, keep, device=True)
    require_distinct(output, output and data_path(output), save_plan, json_file)
    chosen = Plan.load(plan) if plan is not None else None
    Request.parse(rank, chosen, only, skip)  # a mistyped command is found before the original is run
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
        data=sets.fitted if sets is not None else None,
        scratch=output.parent if output is not None else None,
        jobs=jobs,
        track=tracked,
    )
    summary = output_console()
    summary.print(result_view(result))
    if output is None or dry_run:
        outcome = Check(status="not checked", reason="--dry-run")
        _write_documents(result, outcome, None, keep, save_plan, json_file)
        summary.print("\ndry run: no model was written")
        return
    with staged(result.rewritten, output, keep) as candidate:
        outcome = check(standard, candidate)
        quality = _measured(model, candidate, sets) if sets is not None else None
        _write_documents(result, outcome, quality, keep, save_plan, json_file)
    summary.print(check_view(outcome, quality), soft_wrap=True)
    if sets is None:
        summary.print(UNVERIFIED, soft_wrap=True)
    summary.print(f"\nwrote {output}", soft_wrap=True)


def _measured(original: Path, rewritten: Path, sets: SampleSets) -> Quality:
    return measure_quality(original, rewritten, sets.held_out, fitted=len(sets.fitted), labels=sets.labels)


def _baseline(model: Path, shapes: InputShapes, not_wanted: str | None) -> Baseline:
    if not_wanted is not None:
        return Baseline(path=model, reason=not_wanted)
    with Console(stderr=True).status("running the original"):
        return baseline(model, shapes)


def _write_documents(
    result: Result,
    outcome: Check,
    quality: Quality | None,
    keep: set[Path],
    save_plan: Path | None,
    json_file: Path | None,
) -> None:
    if save_plan is not None:
        write_text(save_plan, result.plan.to_json(), keep)
    if json_file is not None:
        measured = {"check": outcome.to_dict()} | ({"quality": quality.to_dict()} if quality else {})
        write_text(json_file, to_json(result.to_dict() | measured), keep)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="The reference model.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The model to judge.", show_default=False)],
    data: Data = None,
    samples: SampleCount = None,
    preset: Preset = None,
    image_size: ImageSize = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    channels: Channels = None,
    layout: Layout = None,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    json_file: JsonFile = None,
) -> None:
    """Say how far apart the outputs of two models are."""
    reference = load(a)
    preprocessing = parse_preprocessing(
        preset=preset,
        image_size=image_size,
        mean=mean,
        std=std,
        scale=scale,
        channels=channels,
        layout=layout,
    )
    drawn = open_data(data, reference.proto, preprocessing, samples)
    keep = reference.files() | load(b).files() | (drawn.sources() if drawn else set())
    if json_file is not None:
        require_target(json_file, keep, device=True)
    feeds = drawn.batches(BATCH) if drawn else None
    outputs = compare_models(a, b, feeds, input_shapes=parse_input_shapes(input_shape))
    if json_file is not None:
        document = {"inputs": str(data) if data else "random", "outputs": [o.to_dict() for o in outputs]}
        write_text(json_file, to_json(document), keep)
    console = output_console()
    console.print(f"on {f'the samples in {data}' if data else 'random inputs'}, the outputs differ by\n")
    console.print(fidelity_table(outputs))
    if drawn and drawn.note:
        console.print(f"\n{drawn.note}")
