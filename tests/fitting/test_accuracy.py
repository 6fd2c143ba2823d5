"""A trained network on real images: fitted factors keep most of the accuracy that plain ones lose."""

from __future__ import annotations

import nets
import numpy as np
import onnx
import onnxruntime
import pytest
from nets import rewrite
from onnx import ModelProto

from onnxdecomp import Policy, Preprocessing, open_samples

IMAGENET = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TEST_IMAGES = 2000


def accuracy(model: ModelProto, images: np.ndarray, labels: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: part})[0].argmax(1) for part in np.array_split(images, 8)]
    return float((np.concatenate(parts) == labels).mean())


@pytest.mark.parametrize(
    ("rank", "least"),
    [("in=0.5,out=0.5", 0.78), pytest.param("in=0.375,out=0.375", 0.67, marks=pytest.mark.heavy)],
)
def test_resnet20_without_labels_or_training(rank: str, least: float) -> None:
    path = nets.data_path("models/cifar10_resnet20.onnx")
    model = onnx.load(path)
    train = np.load(nets.data_path("data/cifar10_train.npz"))["x"][:256]
    test = np.load(nets.data_path("data/cifar10_test.npz"))
    mean, std = (np.float32([IMAGENET.mean, IMAGENET.std])).reshape(2, 1, 3, 1, 1)
    photos, images = (
        ((x.transpose(0, 3, 1, 2) / np.float32(255) - mean) / std).astype(np.float32)
        for x in (train, test["x"][:TEST_IMAGES])
    )
    samples = open_samples([{model.graph.input[0].name: photos}], model)
    policy = Policy(method="tucker2", align=1)
    fitted = rewrite(path, rank, policy=policy, data=samples)
    plain = rewrite(path, rank, policy=policy)
    labels = test["y"][:TEST_IMAGES]
    assert accuracy(fitted.model, images, labels) >= least
    assert accuracy(plain.model, images, labels) < 0.3
