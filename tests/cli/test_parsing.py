"""The texts of options as values."""

from __future__ import annotations

from conftest import Cli

from onnxdecomp import Preprocessing
from onnxdecomp.cli import choices
from onnxdecomp.cli.options import PANELS
from onnxdecomp.cli.parsing import parse_preprocessing
from onnxdecomp.factors import METHODS
from onnxdecomp.planning import AUTO
from onnxdecomp.runtime import PROVIDERS
from onnxdecomp.sampling import PRESETS
from onnxdecomp.sampling.preprocessing import CHANNELS, LAYOUTS
from onnxdecomp.searching.task import COSTS
from onnxdecomp.timing.setting import PRECISIONS
from onnxdecomp.tuning.options import DEVICES
from onnxdecomp.tuning.trained import TRAINED


def test_options_override_the_preset() -> None:
    assert parse_preprocessing() is None
    found = parse_preprocessing(preset="caffe", mean="1,2,3", image_size="7", layout="nhwc")
    assert found == Preprocessing(scale=1.0, mean=(1, 2, 3), channels="bgr", size=(7, 7), layout="nhwc")
    assert parse_preprocessing(preset="imagenet", scale=2.0, std="4", channels="bgr") == Preprocessing(
        scale=2.0, mean=PRESETS["imagenet"]["mean"], std=(4.0,), channels="bgr"
    )


def test_fixed_choices_are_those_of_the_rooms() -> None:
    """They are spelt out so that help need not load the rooms."""
    assert [each.value for each in choices.Method] == [*METHODS, AUTO]
    assert [each.value for each in choices.Provider] == list(PROVIDERS)
    assert [each.value for each in choices.Precision] == list(PRECISIONS)
    assert [each.value for each in choices.Cost] == list(COSTS)
    assert [each.value for each in choices.Preset] == list(PRESETS)
    assert [each.value for each in choices.Channels] == list(CHANNELS)
    assert [each.value for each in choices.Layout] == list(LAYOUTS)
    assert [each.value for each in choices.Train] == list(TRAINED)
    assert [each.value for each in choices.Device] == list(DEVICES)


def test_help_groups_options_by_what_they_are_about(cli: Cli) -> None:
    shown = cli("search", "--help").out
    places = [shown.index(f"\n{panel}:\n") for panel in PANELS]
    assert places == sorted(places)
    assert places[0] < shown.index("--speedup") < places[1]
    assert places[2] < shown.index("--data PATH") < places[3]
    assert "<measured|macs>" in shown and "<imagenet|0-1|caffe>" in shown
