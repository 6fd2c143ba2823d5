"""Fixed choices of options, so that help shows them and completion knows them."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """Decompositions that may be asked for."""

    TUCKER2 = "tucker2"
    TUCKER1 = "tucker1"
    SVD = "svd"
    SPATIAL = "spatial"
    CP = "cp"
    CP3 = "cp3"
    AUTO = "auto"


class Provider(StrEnum):
    """Execution providers, by their short names."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"
    COREML = "coreml"
    DML = "dml"


class Precision(StrEnum):
    """Of the models' floats."""

    FP32 = "fp32"
    FP16 = "fp16"


class Cost(StrEnum):
    """What a search weighs against loss."""

    MEASURED = "measured"
    MACS = "macs"


class Train(StrEnum):
    """What tuning trains."""

    FACTORS = "factors"
    NORMS = "factors+norms"
    CONVS = "convs"


class Device(StrEnum):
    """Where PyTorch computes."""

    CPU = "cpu"
    CUDA = "cuda"


class Preset(StrEnum):
    """Preprocessing of images and bytes."""

    IMAGENET = "imagenet"
    ZERO_ONE = "0-1"
    CAFFE = "caffe"


class Channels(StrEnum):
    """Orders of colour channels."""

    RGB = "rgb"
    BGR = "bgr"


class Layout(StrEnum):
    """Layouts of an image input."""

    NCHW = "nchw"
    NHWC = "nhwc"
