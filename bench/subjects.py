"""The models that ways of choosing ranks are compared on, with images to fit to and to judge on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.quality import ERRORS, NETWORKS, POINT, Images, Network, cifar10, imagenet
from models import fetch
from onnxdecomp import Preprocessing
from onnxdecomp.comparing import Quality, measure_quality
from onnxdecomp.ir import InputShapes, load
from onnxdecomp.runtime import Feeds
from onnxdecomp.sampling import PRESETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model that can be asked for.

    Attributes:
        network: how it is examined; None for a model of the corpus, for which the images have no labels.
        speedups: asked of it unless said otherwise.
        preset: preprocessing, of a model of the corpus.
        shapes: for inputs of unknown dimensions.
    """

    network: Network | None
    speedups: tuple[float, ...] = ()
    preset: str = "imagenet"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


SQUEEZENET = Network(align=8, ranks=(), accuracy=0.547, images="imagenet", fit_samples=128)
MODELS = {
    "cifar10_resnet20": Entry(network=NETWORKS["cifar10_resnet20"]),
    "cifar10_resnet56": Entry(network=NETWORKS["cifar10_resnet56"]),
    "vgg16_cifar10": Entry(network=NETWORKS["vgg16_cifar10"], speedups=(1.5, 2.0)),
    "imagenet_resnet50": Entry(network=NETWORKS["imagenet_resnet50"], speedups=(1.5,)),
    "imagenet_squeezenet1_1": Entry(network=SQUEEZENET, speedups=(1.25,)),
    "anime_or_not_resnet18": Entry(network=None, speedups=(3.0,)),
    "nudenet_yolov8n_320": Entry(
        network=None, speedups=(1.25,), preset="0-1", shapes={"images": (1, 3, 320, 320)}
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """The original model, and images to fit to and to judge on.

    Attributes:
        name: of the model.
        path: of its file.
        images: disjoint ones.
        classes: whether its outputs are the classes of the images' labels.
        shapes: for inputs with unknown dimensions.
        feeds: one image, for timing.
    """

    name: str
    path: Path
    images: Images
    classes: bool
    shapes: InputShapes
    feeds: Feeds

    def judge(self, path: Path) -> Quality:
        """What the test images say of the model at `path`; its outputs must be finite."""
        labels = self.images.labels if self.classes else None
        fitted = len(self.images.fitted)
        quality = measure_quality(self.path, path, self.images.tested, fitted=fitted, labels=labels)
        assert all(output.relative_l2 is not None for output in quality.outputs), path
        return quality

    def assert_known(self, accuracy: float) -> None:
        """The original is as accurate as is known of it: the images are read as it wants them."""
        found = self.judge(self.path).accuracy
        assert found is not None
        error = np.sqrt(accuracy * (1 - accuracy) / len(self.images.labels))
        assert abs(found[0] - accuracy) <= max(POINT, ERRORS * error), (self.name, found[0], accuracy)


def open_subject(name: str, folder: Path, fit: int | None, test: int | None) -> Subject:
    """The model called `name` with its images, of which None is the default number."""
    entry = MODELS[name]
    network, shapes = entry.network, dict(entry.shapes)
    path = folder / "models" / f"{name}.onnx" if network is not None else fetch(name)
    proto, data = load(path).proto, folder / "data"
    if network is None:
        size = next(((height, width) for *_, height, width in shapes.values()), None)
        preprocessing = Preprocessing(**PRESETS[entry.preset], size=size)
        images = imagenet(data, proto, fit or 128, test, preprocessing)
    else:
        reader = cifar10 if network.images == "cifar10" else imagenet
        images = reader(data, proto, fit or network.fit_samples, test)
    feeds = next(images.fitted.batches(1))
    subject = Subject(
        name=name, path=path, images=images, classes=network is not None, shapes=shapes, feeds=feeds
    )
    if network is not None:
        subject.assert_known(network.accuracy)
    return subject
