"""`onnxdecomp rewrite`: the main job."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import onnxdecomp
from onnxdecomp import comparing, ir, planning, rewriting, show
from onnxdecomp.cli.options import (
    OUTPUT,
    RANKS,
    WHERE,
    Debug,
    Freeze,
    InputShape,
    JsonFile,
    ModelFile,
    PlanFile,
    option,
)
from onnxdecomp.cli.parsing import MOST_THREADS, parse_input_shapes
from onnxdecomp.cli.reading import read_policy, read_tuned, reads
from onnxdecomp.cli.samples import SampleOptions, files_of, read_dealt
from onnxdecomp.cli.targets import Targets
from onnxdecomp.cli.telling import Voice, read_voice
from onnxdecomp.errors import UsageError
from onnxdecomp.progress import Progress, stage

if TYPE_CHECKING:
    from rich.console import Console

    from onnxdecomp.comparing import Baseline
    from onnxdecomp.ir import InputShapes, Model
    from onnxdecomp.planning import Plan, Policy
    from onnxdecomp.rewriting import Result
    from onnxdecomp.sampling import SampleSets
    from onnxdecomp.tuning import Tuning

UNVERIFIED = (
    "\naccuracy is unverified: --data PATH (a folder of images, an .npz or the like) fits the factors "
    "to samples and measures it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOptions:
    """What is said of ranks: by a rule or by the file of a plan, for which sites, and what may be chosen."""

    rank: str | None
    plan: Path | None
    only: str | None
    skip: str | None
    policy: Policy

    def load_plan(self) -> Plan | None:
        """The plan, None without `--plan`.

        Raises:
            UsageError: it cannot be read; or a rank, plan or regular expression cannot be obeyed.
        """
        plan = planning.as_plan(self.plan) if self.plan is not None else None
        rewriting.Request.parse(self.rank, plan, self.policy, self.only, self.skip)
        return plan


@reads(allowed=read_policy)
def read_ranks(
    rank: Annotated[
        str | None,
        option(
            RANKS, help="0.25, in=0.25,out=0.5, 32, in=16,out=32, energy=0.9, vbmf, params=0.5 or macs=0.5."
        ),
    ] = None,
    plan: Annotated[
        Path | None, option(RANKS, metavar="FILE", help="Ranks from a plan, instead of --rank.")
    ] = None,
    only: Annotated[str | None, option(RANKS, metavar="REGEX", help="Only sites whose name matches.")] = None,
    skip: Annotated[str | None, option(RANKS, metavar="REGEX", help="Keep sites whose name matches.")] = None,
    *,
    allowed: tuple[Policy, list[str]],
) -> RankOptions:
    """Which ranks, and where."""
    policy, given = allowed
    if plan is not None and given:
        names = " and ".join(f"`{name}`" for name in given)
        raise UsageError(f"{names} would choose ranks, and --plan names them: leave one or the other out")
    return RankOptions(rank=rank, plan=plan, only=only, skip=skip, policy=policy)


@reads(ranks=read_ranks, samples=read_dealt, tuning=read_tuned, voice=read_voice)
def rewrite(
    ranks: RankOptions,
    samples: SampleOptions,
    tuning: Tuning | None,
    model: ModelFile,
    output: Annotated[
        Path | None, typer.Argument(help="Where to write the new model.", show_default=False)
    ] = None,
    fold_bn: Annotated[
        bool,
        option(
            RANKS, "--fold-bn/--no-fold-bn", help="Fold BatchNormalization into its Conv before factoring."
        ),
    ] = True,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    freeze_weights: Freeze = False,
    jobs: Annotated[int, option(WHERE, help="Weights factored at a time; -1 is one per core.")] = -1,
    run_check: Annotated[
        bool,
        option(OUTPUT, "--check/--no-check", help="Run both models and compare before anything is written."),
    ] = True,
    dry_run: Annotated[
        bool, option(OUTPUT, "--dry-run", help="Show what would be done; write no model.")
    ] = False,
    save_plan: PlanFile = None,
    json_file: JsonFile = None,
    debug: Debug = False,
    *,
    voice: Voice,
) -> None:
    """Replace Convs by chains of smaller ones."""
    if output is None and not dry_run:
        raise UsageError("name the output file: onnxdecomp rewrite IN OUT --rank 0.25 (or give --dry-run)")
    if jobs == 0 or jobs > MOST_THREADS:
        raise UsageError(f"--jobs {jobs}: give 1 to {MOST_THREADS}, or -1 for one per core")
    shapes = parse_input_shapes(input_shape)
    source = ir.load(model)
    sets = samples.deal(source, tuned=tuning is not None)
    keep = {
        "the input": source.files(),
        "the plan": {ranks.plan.resolve()} if ranks.plan is not None else set(),
    }
    targets = Targets(keep | files_of(sets), save_plan, json_file, model=output)
    plan = ranks.load_plan()  # a mistyped command is found before the original is run
    if tuning is not None:
        rewriting.require_tunable(tuning, sets.tuned_on if sets is not None else None, "data")
    unchecked = "--dry-run" if dry_run else None if run_check else "--no-check"
    with targets.accounted(), voice.progress() as progress:
        standard = _baseline(source, shapes, sets, unchecked, progress)
        result = onnxdecomp.rewrite(
            source,
            ranks.rank,
            plan=plan,
            policy=ranks.policy,
            only=ranks.only,
            skip=ranks.skip,
            fold_bn=fold_bn,
            freeze_weights=freeze_weights,
            input_shapes=shapes,
            data=sets.fitted if sets is not None else None,
            scratch=output.parent if output is not None else None,
            jobs=jobs,
            check=False,  # that of the staged file follows
            progress=progress,
        )
        if tuning is not None and sets is not None:
            result = rewriting.improved(result, source, sets, tuning, progress)
    with targets.accounted(result.interrupted):
        console = targets.console(voice)
        console.print(show.result_view(result))
        if output is None or dry_run:
            unrun = comparing.Check(status="not checked", reason="--dry-run")
            result = dataclasses.replace(result, check=unrun)
            targets.text(save_plan, result.plan.to_json)
            targets.json(json_file, result.to_dict)
            console.print("\ndry run: no model was written")
            return
        with targets.staged(result) as candidate:
            with voice.progress() as progress:
                result = _judged(result, candidate, standard, sets, progress)
            targets.text(save_plan, result.plan.to_json)
            targets.json(json_file, result.to_dict)
        _conclude(result, output, console)


def _baseline(
    source: Model, shapes: InputShapes, sets: SampleSets | None, unchecked: str | None, progress: Progress
) -> Baseline:
    """What the original does, or why that was not found out."""
    if unchecked is not None:
        return comparing.Baseline(path=source.path or Path(), reason=unchecked)
    with stage("running the original", progress):
        return comparing.baseline(source, shapes, keep=sets is not None)


def _judged(
    result: Result, candidate: Path, standard: Baseline, sets: SampleSets | None, progress: Progress
) -> Result:
    """The result with what the new model does: its check, and its quality where there are samples."""
    with stage("checking the new model", progress):
        found = dataclasses.replace(result, check=onnxdecomp.check(standard, candidate))
    if sets is None:
        return found
    with stage(f"measuring on {len(sets.held_out)} samples", progress):
        quality = onnxdecomp.measure_quality(
            standard, candidate, sets.held_out, fitted=len(sets.fitted), labels=sets.labels
        )
    return dataclasses.replace(found, quality=quality)


def _conclude(result: Result, output: Path, console: Console) -> None:
    """Say what the check came to, and what was written."""
    if result.check is None:
        raise ValueError("the result was not judged")
    if result.quality is None:
        console.print(show.check_view(result.check))
        console.print(UNVERIFIED)
    else:
        console.print(show.check_line(result.check))
        console.print(show.quality_view(result.quality))
        if result.check.status != "passed" and result.quality.note is not None:
            console.print(f"\n{result.quality.note}", markup=False)
    console.print(f"\nwrote {output}", soft_wrap=True)
