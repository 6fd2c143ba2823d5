"""The Python interface: what is public, documented, typed, and leaves its arguments alone."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import itertools
import re
import rlcompleter
import sys
from importlib import metadata, resources
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

import nets
import numpy as np
import onnx
import pytest
from conftest import external_entry, save, save_external, small_model, spawn, untouched
from onnx import ModelProto

import onnxdecomp
from onnxdecomp import Choice, Plan, Policy, Ranks, Result, Site, errors

PUBLIC = {name: getattr(onnxdecomp, name) for name in onnxdecomp.__all__}
ERRORS = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# The public surface
# ------------------


def test_all_is_the_public_surface_in_order() -> None:
    """In a fresh process: modules that others import become attributes, too."""
    names = {
        name
        for name, value in vars(onnxdecomp).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert names == set(onnxdecomp.__all__)
    assert onnxdecomp.__all__ == sorted(onnxdecomp.__all__)


def test_completion_offers_the_public_names_alone() -> None:
    """Rooms are attributes of the package once they are imported, as they are by now."""
    assert isinstance(vars(onnxdecomp)["ir"], ModuleType)
    assert set(dir(onnxdecomp)) == {*onnxdecomp.__all__, "__version__"}
    completer = rlcompleter.Completer({"onnxdecomp": onnxdecomp})
    offered = itertools.takewhile(bool, (completer.complete("onnxdecomp.", i) for i in itertools.count()))
    names = {str(text).removeprefix("onnxdecomp.").rstrip("()") for text in offered}
    assert {name for name in names if not name.startswith("_")} == set(onnxdecomp.__all__)


@pytest.mark.parametrize("value", [v for v in PUBLIC.values() if dataclasses.is_dataclass(v)], ids=str)
def test_completion_of_a_value_offers_what_is_documented(value: type) -> None:
    documented = {field.name for field in dataclasses.fields(value)} | dict(members(value)).keys()
    assert {name for name in dir(value) if not name.startswith("_")} == documented


def test_the_promised_names_are_there() -> None:
    assert {"rewrite", "find_sites", "Plan", "compare", "Result"} <= set(onnxdecomp.__all__)


def members(value: Any) -> list[tuple[str, Any]]:
    """The public methods and properties a class defines itself."""
    kinds = (FunctionType, classmethod, staticmethod, property)
    own = vars(value).items()
    return [(name, each) for name, each in own if not name.startswith("_") and isinstance(each, kinds)]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented_and_typed(name: str) -> None:
    value = PUBLIC[name]
    documented = [(name, value), *(members(value) if inspect.isclass(value) else [])]
    for label, member in documented:
        text = inspect.getdoc(member.__func__ if isinstance(member, classmethod) else member)
        # A dataclass without a docstring shows its signature.
        assert text and not text.startswith(f"{name}("), label
    if inspect.isfunction(value):
        hints = get_type_hints(value)
        assert set(inspect.signature(value).parameters) | {"return"} == set(hints)


@pytest.mark.parametrize("name", ["rewrite", "find_sites", "compare", "bench", "settings"])
def test_docstrings_name_every_argument_and_every_error(name: str) -> None:
    function = PUBLIC[name]
    text = inspect.getdoc(function) or ""
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^    {argument}: ", text, re.MULTILINE), argument
    for error in re.findall(r"\b\w+Error\b", text):
        assert error in ERRORS


@pytest.mark.parametrize("value", [v for v in PUBLIC.values() if dataclasses.is_dataclass(v)], ids=str)
def test_values_are_frozen_slotted_and_their_attributes_documented(value: type) -> None:
    assert value.__dataclass_params__.frozen and "__slots__" in vars(value)
    fields = [field.name for field in dataclasses.fields(value)]
    text = inspect.getdoc(value) or ""
    if len(fields) > 2:
        assert [name for name in fields if not re.search(rf"^    {name}: ", text, re.MULTILINE)] == []


def test_the_package_carries_its_types_and_its_version() -> None:
    assert resources.files(onnxdecomp).joinpath("py.typed").is_file()
    assert metadata.version("onnxdecomp") == onnxdecomp.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", onnxdecomp.__version__)


def test_the_example_of_the_package_runs(tmp_path: Path) -> None:
    save(small_model(), tmp_path / "in.onnx")
    assert doctest.testmod(onnxdecomp) == (0, 3)
    assert nets.run(onnx.load("out.onnx"), x=nets.signal(1, 16, 8, 8))["y"].shape == (1, 32, 8, 8)


def test_importing_needs_neither_onnxruntime_nor_torch_nor_a_backend() -> None:
    code = (
        "import sys, onnxdecomp, onnxdecomp.cli\n"
        "print(*sorted({'onnxruntime', 'torch', 'matplotlib', 'PIL'} & set(sys.modules)))"
    )
    assert spawn(sys.executable, "-c", code).out == "\n"


# Errors
# ------


def test_the_tree_of_errors_is_the_one_drawn() -> None:
    tree = r"^    [├└─│ ]*(\w+Error)\s+(?:exit code (\d))?"
    drawn = re.findall(tree, errors.__doc__ or "", re.MULTILINE)
    assert {name for name, _ in drawn} == set(ERRORS)
    # What catches the errors of a library must not catch an interruption.
    caught = {name: error for name, error in ERRORS.items() if error is not errors.StoppedError}
    codes = {name: int(code or 2) for name, code in drawn if name in caught}
    assert codes == {name: error.exit_code for name, error in caught.items()}
    assert all(issubclass(error, errors.OnnxdecompError) for error in caught.values())
    assert not issubclass(errors.StoppedError, Exception) and errors.StoppedError(15).exit_code == 143
    assert set(ERRORS) <= set(onnxdecomp.__all__)


def test_the_codes_are_those_promised() -> None:
    codes = {onnxdecomp.CheckError: 1, onnxdecomp.UsageError: 2, onnxdecomp.ModelError: 2}
    codes |= {onnxdecomp.OutputError: 2, onnxdecomp.NothingSelectedError: 3}
    assert codes == {error: error.exit_code for error in codes}


# rewrite()
# ---------


def test_a_model_in_memory_stays_as_it_is() -> None:
    model = small_model()
    before = model.SerializeToString()
    result = onnxdecomp.rewrite(model, 0.25)
    assert model.SerializeToString() == before
    result.model.graph.node[0].name = "changed by the caller"
    assert model.SerializeToString() == before


def test_a_file_a_path_and_a_model_give_the_same(tmp_path: Path) -> None:
    path = save(small_model(), tmp_path / "in.onnx")
    with untouched(tmp_path):
        results = [onnxdecomp.rewrite(each, 0.25) for each in (str(path), path, small_model())]
    first, *others = [(r.model.SerializeToString(), r.plan, r.sites, r.totals, r.to_dict()) for r in results]
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    "ranks", [(0.25, "0.25", np.float64(0.25)), (8, "8", np.int64(8)), ("in=8,out=8", "in=0.5,out=0.25")]
)
def test_ranks_may_be_numbers_or_text(ranks: tuple[Any, ...]) -> None:
    results = [onnxdecomp.rewrite(small_model(), rank) for rank in ranks]
    assert {result.plan.sites["conv"] for result in results} == {Choice("tucker2", Ranks(8, 8))}


def test_the_result_says_what_was_done_and_can_be_repeated(tmp_path: Path) -> None:
    result = onnxdecomp.rewrite(small_model(), 0.25)
    (report,) = result.sites
    (site,) = onnxdecomp.find_sites(small_model())
    assert isinstance(result, Result) and isinstance(report.site, Site) and report.site == site
    assert report.choice == result.plan.sites["conv"] and report.reason is None
    assert (site.kernel, site.channels, site.params, site.macs) == ((3, 3), (16, 32), 4608, 4608 * 64)
    assert result.totals.params == (4608, 8 * 16 + 8 * 8 * 9 + 8 * 32)
    again = onnxdecomp.rewrite(small_model(), plan=Plan.from_json(result.plan.to_json()))
    assert again.model == result.model and again.totals == result.totals
    result.save(tmp_path / "out.onnx")
    assert onnx.load("out.onnx") == result.model
    assert result.totals.nbytes[1] == Path("out.onnx").stat().st_size


def test_rewriting_what_was_rewritten_changes_only_what_is_left() -> None:
    """The links of a chain are Convs like any other, but too small to give anything more."""
    once = onnxdecomp.rewrite(small_model(), 0.25).model
    names = [site.name for site in onnxdecomp.find_sites(once)]
    assert names == ["conv/tucker_in", "conv/tucker_core", "conv/tucker_out"]
    with pytest.raises(onnxdecomp.NothingSelectedError):
        onnxdecomp.rewrite(once, 0.25)


def test_saving_never_overwrites_the_input(tmp_path: Path) -> None:
    """Nor its data file, which the result still reads from."""
    inline = save(small_model(), tmp_path / "in.onnx")
    (tmp_path / "outside").mkdir()
    outside = save_external(small_model(), tmp_path / "outside/in.onnx")
    neighbour = save_external(small_model(), tmp_path / "outside/x.onnx", location="y.onnx.data")
    for source, target in ((inline, inline), (outside, outside), (neighbour, neighbour.with_name("y.onnx"))):
        result = onnxdecomp.rewrite(source, 0.25, only="conv")
        with untouched(tmp_path), pytest.raises(onnxdecomp.UsageError, match="belongs to the input"):
            result.save(target)


def test_data_in_other_files_need_the_path(tmp_path: Path) -> None:
    path = save_external(small_model(), tmp_path / "in.onnx")
    model = onnx.load(path, load_external_data=False)
    for refused in (lambda: onnxdecomp.rewrite(model, 0.25), lambda: onnxdecomp.find_sites(model)):
        with pytest.raises(onnxdecomp.UsageError, match="pass its path instead of the ModelProto"):
            refused()
    loaded = onnxdecomp.rewrite(onnx.load(path), 0.25)
    assert loaded.plan == onnxdecomp.rewrite(path, 0.25).plan
    assert external_entry(model.graph.initializer[0])["location"] == "in.onnx.data"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "rank"),
        ({"rank": 0.5, "plan": Plan()}, "rank"),
        ({"rank": 0.0}, "above 0"),
        ({"rank": -1}, "-1"),
        ({"rank": 1.5}, "1.0"),
        ({"rank": float("nan")}, "nan"),
        ({"rank": True}, "True"),
        ({"rank": 0.5, "only": "("}, "regular expression"),
        ({"rank": 0.5, "input_shapes": {"z": (1,)}}, "no such input"),
        ({"rank": 0.5, "input_shapes": {"x": (1, 2)}}, "1,16,8,8"),
        ({"plan": Plan({"conv": Choice("tucker2", Ranks(17, 8))})}, "17"),
        ({"plan": Plan({"covn": Choice("tucker2", Ranks(8, 8))})}, "covn"),
    ],
)
def test_misuse_is_one_kind_of_error(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(onnxdecomp.UsageError, match=re.escape(says)) as caught:
        onnxdecomp.rewrite(small_model(), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [{"method": "foo"}, {"align": 0}, {"min_channels": 0}])
def test_a_policy_that_cannot_be_obeyed_is_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(onnxdecomp.UsageError):
        Policy(**arguments)


@pytest.mark.parametrize("model", [ModelProto(), ModelProto(ir_version=8)])
def test_an_empty_protobuf_is_no_model(model: ModelProto) -> None:
    with pytest.raises(onnxdecomp.ModelError, match="not an ONNX model"):
        onnxdecomp.find_sites(model)


@pytest.mark.parametrize("wrong", [b"bytes of a model", 3, None])
def test_something_else_is_a_type_error(wrong: Any) -> None:
    with pytest.raises((TypeError, onnxdecomp.OnnxdecompError)):
        onnxdecomp.find_sites(wrong)


def test_no_function_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = onnxdecomp.rewrite(small_model(), 0.25)
    for name in ("a.onnx", "b.onnx"):
        result.save(name)
    onnxdecomp.find_sites("a.onnx")
    onnxdecomp.compare("a.onnx", "b.onnx")
    assert capsys.readouterr() == ("", "")
