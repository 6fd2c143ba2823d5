"""`onnxdecomp trials`: what a study has tried, and the plan of any trial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import onnxdecomp
from onnxdecomp import searching, show
from onnxdecomp.cli.options import OUTPUT, STUDY, Debug, JsonFile, option
from onnxdecomp.cli.targets import Targets
from onnxdecomp.cli.telling import Voice
from onnxdecomp.errors import UsageError


def trials(
    storage: Annotated[
        str, typer.Argument(metavar="URL", help="Where the study lies: sqlite:///F.db, journal:F.log, …")
    ],
    study: Annotated[
        str | None, option(STUDY, metavar="NAME", help="Its name, where there are several.")
    ] = None,
    number: Annotated[
        int | None, option(STUDY, "--trial", metavar="N", help="The trial whose plan is wanted.")
    ] = None,
    save_plan: Annotated[
        Path | None,
        option(OUTPUT, "--save-plan", metavar="FILE", help="Write its plan, for `rewrite --plan`."),
    ] = None,
    json_file: JsonFile = None,
    debug: Debug = False,
) -> None:
    """List the trials of a study; write the plan of one of them."""
    if (number is None) != (save_plan is None):
        raise UsageError("--trial and --save-plan belong together: --trial 7 --save-plan plan.json")
    file = searching.storage_file(storage)
    keep = {"the study's storage": {file.resolve()} if file is not None else set()}
    targets = Targets(keep, save_plan, json_file)
    found = onnxdecomp.read_trials(storage, study)
    if number is not None:
        named = next((each for each in found if each.number == number), None)
        if named is None or named.plan is None:
            last = f"they are numbered 0 to {len(found) - 1}" if found else "there are none"
            raise UsageError(f"--trial {number}: no trial of that number has a plan; {last}")
        targets.text(save_plan, named.plan.to_json)
    targets.json(json_file, lambda: {"trials": [each.to_dict() for each in found]})
    targets.console(Voice()).print(show.trials_view(found))
