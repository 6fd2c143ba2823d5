"""A user's script: every public function, typed; `make lint` checks the types, a test runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

import onnxdecomp


def main(folder: Path) -> list[str]:
    """Do all that can be done with the model `in.onnx` in a folder; returns what was told on the way."""
    told: list[str] = []

    def progress(event: onnxdecomp.ProgressEvent) -> None:
        told.append(f"{event.stage}: {event.done} of {event.total} {event.item}")

    source = folder / "in.onnx"
    proto = onnx.load(source)
    sites: list[onnxdecomp.Site] = onnxdecomp.find_sites(source)
    inspection: onnxdecomp.Inspection = onnxdecomp.inspect(proto, spectrum=True, progress=progress)
    assert [site.name for site in sites] == [site.name for site in inspection.sites]

    images: NDArray[np.float32] = np.random.default_rng(0).standard_normal((40, 16, 8, 8), np.float32)
    np.savez(folder / "samples.npz", x=images, classes=np.zeros(40, np.int64))
    samples: onnxdecomp.Samples = onnxdecomp.open_samples(folder / "samples.npz", proto)
    sets = onnxdecomp.SampleSets.draw(samples, count=24)
    labels: NDArray[np.int64] = onnxdecomp.read_labels("classes", sets.held_out)
    assert len(labels) == len(sets.held_out)

    policy = onnxdecomp.Policy(min_channels=8, align=4, allow_slower=True)
    result: onnxdecomp.Result = onnxdecomp.rewrite(
        source, "in=0.5,out=0.5", policy=policy, data=sets.fitted, progress=progress
    )
    result.save(folder / "out.onnx")
    tuned: onnxdecomp.TuneResult = onnxdecomp.tune(
        source, result, samples, tuning=onnxdecomp.Tuning(steps=2), progress=progress
    )
    gaps: tuple[onnxdecomp.Gap, ...] = tuned.outputs
    assert [gap.name for gap in gaps] == ["y"]
    both: onnxdecomp.Result = onnxdecomp.rewrite(
        source, 8, policy=policy, data=sets, tuning=onnxdecomp.Tuning(steps=2), progress=progress
    )
    won: onnxdecomp.TuneResult | None = both.tuned
    assert won is not None and both.interrupted is None and both.quality is not None
    verdict: onnxdecomp.Check = onnxdecomp.check(source, folder / "out.onnx")
    quality: onnxdecomp.Quality = onnxdecomp.measure_quality(source, result, sets.held_out)
    comparison: onnxdecomp.Comparison = onnxdecomp.compare(source, folder / "out.onnx", samples)
    assert onnxdecomp.compare(result.model, result, samples[0])[0].relative_l2 == 0
    assert [feed["x"].shape[0] for feed in samples[2:5]] == [1, 1, 1]
    energies: list[float] = [each.modes[0].energy(8) for each in inspection.spectra]
    assert len(energies) == len(sites)
    errors: list[float | None] = [output.relative_l2 for output in comparison]
    assert verdict.status == "passed" and len(errors) == len(quality.outputs)

    found: onnxdecomp.SearchResult = onnxdecomp.search(
        source, onnxdecomp.Goal("macs", 0.6), samples=sets, policy=policy, cost="macs", progress=progress
    )
    found.save(folder / "searched.onnx", best_effort=True)
    spent: onnxdecomp.SearchResult = onnxdecomp.search(
        source,
        onnxdecomp.Goal("max_error", 0.5),
        samples=sets,
        policy=policy,
        cost="macs",
        tuning=onnxdecomp.Tuning(steps=2),
    )
    before: float | None = spent.best.fitted_error if spent.best is not None else None
    assert before is not None or not spent.met
    plan: onnxdecomp.Plan | None = found.plan
    assert plan is not None

    def accuracy(model: onnxdecomp.Runner) -> float:
        return float(np.mean([model.run({"x": image[None]})["y"] for image in images[:4]]))

    kept = f"sqlite:///{folder / 'study.db'}"
    judged = onnxdecomp.search(
        source,
        onnxdecomp.Goal("macs", 0.6),
        samples=sets,
        metric=onnxdecomp.Metric(accuracy, lower_is_better=True, name="mean"),
        policy=policy,
        cost="macs",
        trials=onnxdecomp.Trials(number=2, storage=kept),
    )
    score: onnxdecomp.Score | None = judged.best.score if judged.best is not None else None
    trials: tuple[onnxdecomp.Trial, ...] = onnxdecomp.read_trials(kept)
    assert score is not None and len(trials) == 2
    cached: onnxdecomp.CacheContents = onnxdecomp.inspect_cache()
    kind: onnxdecomp.CacheKind = cached.kinds[0]
    assert kind.kind == "costs" and onnxdecomp.clear_cache() == cached
    plan.save(folder / "plan.json")
    again = onnxdecomp.rewrite(
        source, plan=folder / "plan.json", input_shapes="x:1,16,8,8", scratch=str(folder)
    )
    assert {type(each) for each in again.plan.sites.values()} == {onnxdecomp.Choice}

    budget = onnxdecomp.Budget(runs=4)
    places: list[onnxdecomp.Setting] = onnxdecomp.settings("cpu", threads=1)
    timed: onnxdecomp.BenchResult = onnxdecomp.bench(
        [source, result, proto], settings=places, budget=budget, progress=progress
    )
    assert len(timed.cells) == 1
    return told
