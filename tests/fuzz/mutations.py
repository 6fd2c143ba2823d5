"""Hostile input made at random, the same for the same seed: models, samples, labels, plans, words."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nets
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import ModelProto

SMALL = """m (float[n,16,6,6] x) => (float[n,5] y) {
  [conv] h = Conv <pads=[1,1,1,1]> (x, w, b)
  i = BatchNormalization <epsilon=0.001> (h, s, b, b, s)
  r = Relu (i)
  [point] j = Conv <strides=[2,2]> (r, u)
  g = GlobalAveragePool (j)
  f = Flatten <axis=1> (g)
  [head] y = Gemm <transB=1> (f, v)
}"""
CALLING = """<ir_version: 8, opset_import: ["" : 17, "l" : 1]>
m (float[1,16,6,6] x) => (float[1,16,6,6] y) { z = l.twice (x, w) y = l.once (z, w) }
<opset_import: ["" : 17], domain: "l"> once (a, k) => (c) { c = Conv <pads=[1,1,1,1]> (a, k) }
<opset_import: ["" : 17, "l" : 1], domain: "l"> twice (a, k) => (c) { b = l.once (a, k) c = l.once (b, k) }"""
# What a whole number, a number or a text is replaced by.
INTEGERS = (0, 1, -1, 2, 3, 7, 99, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**31), -(2**63))
NUMBERS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "x",
    "w",
    "y",
    "/",
    "..",
    "a/b",
    "n" * 3000,
    "\x1b[2J",
    "\n",
    "[red]",
    "ß𝕏",
    "~1",
    "-",
    "{}",
    "%s",
    "Conv",
)
JUNK = (None, True, False, 0, -1, 1, 2.5, 2**70, 1e300, "", "svd", "x" * 500, [], {}, [[]], {"in": 1})


def whole_model(chooser: random.Random) -> ModelProto:
    """A model that is whole."""
    which = chooser.randrange(4)
    if which == 0:
        return nets.branching()
    if which == 1:
        return nets.model(CALLING, w=nets.weight(16, 16, 3, 3))
    arrays = {"w": nets.weight(32, 16, 3, 3), "u": nets.weight(32, 32, 1, 1), "v": nets.weight(5, 32)}
    return nets.model(SMALL, **arrays, b=nets.signal(32), s=np.abs(nets.signal(32)) + 1)


# Protobufs
# ---------


def mutated_model(chooser: random.Random) -> bytes:
    """A model some of whose fields, or bytes, are others."""
    model = whole_model(chooser)
    for _ in range(chooser.choice([1, 1, 1, 2, 3, 6])):
        _mutate_field(chooser, model)
    raw = model.SerializeToString()
    return mutated_bytes(chooser, raw) if chooser.random() < 0.2 else raw


def _parts(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                yield from _parts(part)


def _mutate_field(chooser: random.Random, model: ModelProto) -> None:
    parts = list(_parts(model))
    message = chooser.choice(parts)
    field = chooser.choice([*(field for field, _ in message.ListFields()), *message.DESCRIPTOR.fields])
    if field.is_repeated:
        _mutate_list(chooser, message, field, parts)
    elif chooser.random() < 0.2:
        message.ClearField(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        _replace(chooser, getattr(message, field.name), parts)
    else:
        setattr(message, field.name, _scalar(chooser, field, getattr(message, field.name)))


def _mutate_list(
    chooser: random.Random, message: Message, field: FieldDescriptor, parts: list[Message]
) -> None:
    values = getattr(message, field.name)
    how = chooser.choice(("clear", "delete", "repeat", "turn", "add", "change", "change"))
    if how == "clear":
        message.ClearField(field.name)
    elif how == "add" or not len(values):
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            _replace(chooser, values.add(), parts)
        else:
            values.append(_scalar(chooser, field, values[0] if len(values) else None))
    elif how == "delete":
        del values[chooser.randrange(len(values))]
    elif how == "repeat":
        values.append(chooser.choice(values))
    elif how == "turn":
        values.reverse()
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        _replace(chooser, chooser.choice(values), parts)
    else:
        place = chooser.randrange(len(values))
        values[place] = _scalar(chooser, field, values[place])


def _replace(chooser: random.Random, message: Message, parts: list[Message]) -> None:
    """Make a message another of its type, if there is one."""
    others = [each for each in parts if each.DESCRIPTOR is message.DESCRIPTOR]
    copy = type(message)()
    copy.CopyFrom(chooser.choice(others or [message]))
    message.CopyFrom(copy)


def _scalar(chooser: random.Random, field: FieldDescriptor, old: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return chooser.choice(field.enum_type.values).number
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return chooser.choice(NUMBERS)
    if field.type == FieldDescriptor.TYPE_STRING:
        return chooser.choice(TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return mutated_bytes(chooser, old or b"")
    bits = 31 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 63
    least = 0 if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64 else -(2**bits)
    return chooser.choice([each for each in INTEGERS if least <= each < 2**bits])


def mutated_bytes(chooser: random.Random, raw: bytes) -> bytes:
    """Bytes with some changed, some missing, or others behind them."""
    how = chooser.choice(("flip", "flip", "cut", "insert", "repeat"))
    place = chooser.randrange(len(raw) + 1)
    if how == "cut":
        return raw[:place]
    if how == "insert":
        return raw[:place] + chooser.randbytes(chooser.choice([1, 4, 300])) + raw[place:]
    if how == "repeat":
        return raw + raw[place:]
    flipped = bytearray(raw)
    for _ in range(chooser.choice([1, 2, 8]) if raw else 0):
        flipped[chooser.randrange(len(raw))] = chooser.choice([0, 1, 127, 128, 255, chooser.randrange(256)])
    return bytes(flipped)


# Samples and labels
# ------------------


def samples(chooser: random.Random) -> bytes:
    """An .npz or .npy file: of odd arrays, with odd headers, or damaged."""
    x = nets.signal(6, 16, 6, 6) * np.float32(chooser.choice([1, 1, 1, 0, 1e-30, 1e30]))
    odd: list[Callable[[], Any]] = [
        lambda: x,
        lambda: x,
        lambda: x.astype(chooser.choice(["f8", "f2", "i4", "u1", "?", "c8", "U3", "S0", "M8[s]", "V4"])),
        lambda: x[:, :: chooser.choice([1, 2, -1])],
        lambda: x.reshape(chooser.choice([(6, -1), (-1,), (1, 6, 16, 36), (576, 6)])),
        lambda: x[: chooser.choice([0, 1, 2])],
        lambda: np.where(np.arange(x.size).reshape(x.shape) == 7, chooser.choice(NUMBERS), x),
        lambda: np.array([(1, 2)], "i4,f4"),
        lambda: np.float32(1),
    ]
    stream = io.BytesIO()
    if chooser.random() < 0.4:
        np.save(stream, chooser.choice(odd)())
        raw = stream.getvalue()
    else:
        names = chooser.sample(["x", "flag", "y", "other", "", "a/b"], chooser.choice([1, 2, 3]))
        with zipfile.ZipFile(stream, "w", chooser.choice([0, 8, 12, 14])) as made:
            for name in dict.fromkeys(["x", *names] if chooser.random() < 0.8 else names):
                inner = io.BytesIO()
                np.save(inner, chooser.choice(odd)() if name != "flag" else np.array([True]))
                data = inner.getvalue()
                data = _mutated_header(chooser, data) if chooser.random() < 0.3 else data
                made.writestr(chooser.choice([f"{name}.npy"] * 4 + [name or "x"]), data)
        raw = stream.getvalue()
    return mutated_bytes(chooser, raw) if chooser.random() < 0.5 else raw


def _mutated_header(chooser: random.Random, raw: bytes) -> bytes:
    old = chooser.choice([b"(6,", b"'<f4'", b"False", b"{", b"}", b"descr"])
    new = chooser.choice(
        [b"(9" * 30, b"'''", b"(-1,", b"(10**9,", b"'|O'", b"'<f3'", b"None", b"((((", b"\xff\xfe"]
    )
    return raw.replace(old, new)


def labels(chooser: random.Random) -> bytes:
    """A CSV file of classes for six samples."""
    rows = [f"{i}.npy,{i % 3}" for i in range(6)]
    for _ in range(chooser.choice([0, 1, 2])):
        odd = [
            "",
            ",",
            "a,b,c",
            f"0.npy,{'9' * 25}",
            "1.npy,-1",
            '"',
            "x\x00,1",
            ",".join("x" * 900),
            "2.npy,1.5",
        ]
        rows.insert(chooser.randrange(len(rows) + 1), chooser.choice(odd))
    raw = "\n".join(rows).encode()
    return mutated_bytes(chooser, raw) if chooser.random() < 0.4 else raw


def plan(chooser: random.Random) -> bytes:
    """A plan for sites that may be there."""
    site = {"method": "tucker2", "ranks": {"in": 8, "out": 8}}
    document: Any = {"version": 1, "sites": {chooser.choice(["conv", "outer", "point", "head", ""]): site}}
    text = json.dumps(document)
    for _ in range(chooser.choice([0, 1, 2])):
        old = chooser.choice(['"tucker2"', "8", '{"in"', "1", '"conv"', '"ranks"', '"sites"'])
        text = text.replace(old, json.dumps(chooser.choice(JUNK)) if old[0] != "{" else '{"out"', 1)
    if chooser.random() < 0.1:
        text = chooser.choice(
            ["[" * 100_000, '{"a":' * 5000, "9" * 6000, "NaN", '{"version": 1, "sites": ' + "[" * 3000]
        )
    raw = text.encode()
    return mutated_bytes(chooser, raw) if chooser.random() < 0.3 else raw


# Words
# -----

WORDS = (
    "",
    "0",
    "-1",
    "1",
    "0.5",
    "8",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 30,
    "abc",
    "ß",
    "=",
    ":",
    ",",
    "x:1,2",
    "(" * 99,
)
PATHS = (
    "out.onnx",
    "in.onnx",
    ".",
    "/dev/null",
    "/dev/zero",
    "none/x",
    "link",
    "pipe",
    "r.json",
    "x" * 400,
    "in.onnx/",
    "",
)
OPTIONS = {
    "--rank": (
        *WORDS,
        "energy=0.9",
        "vbmf",
        "in=8,out=8",
        "in=0.1",
        "params=0.5",
        "macs=2",
        "energy=nan",
        "0.25",
    ),
    "--only": (*WORDS, "conv", "(?P<a", "[", "(a+)+$"),
    "--skip": WORDS,
    "--method": ("tucker2", "svd", "cp", "spatial", "auto", "none", ""),
    "--align": WORDS,
    "--min-channels": WORDS,
    "--input-shape": (
        "x:1,16,6,6",
        "x:1,16,99999,99999",
        "x:",
        "x:-1",
        "x:1,1,1",
        "q:1",
        ":",
        "x:0,16,6,6",
        *WORDS,
    ),
    "--data": ("x.npz", "x.npy", "set", *PATHS),
    "--samples": WORDS,
    "--labels": ("l.csv", "x.npz:y", "x.npz:", *PATHS),
    "--plan": ("p.json", *PATHS),
    "--json": ("r.json", "-", *PATHS),
    "--save-plan": ("s.json", "-", *PATHS),
    "--scale": WORDS,
    "--mean": (*WORDS, "1,2,3", "nan,nan"),
    "--image-size": (*WORDS, "4,4"),
    "--macs": WORDS,
    "--params": WORDS,
    "--max-error": WORDS,
    "--max-drop": WORDS,
    "--time-limit": WORDS,
    "--batch": WORDS,
    "--trial": WORDS,
}
FLAGS = (
    "--no-check",
    "--dry-run",
    "--linear",
    "--allow-slower",
    "--freeze-weights",
    "--no-fold-bn",
    "-q",
    "-v",
    "--nonsense",
)


def words(chooser: random.Random) -> list[str]:
    """A command line, most of whose options belong to the command."""
    command, own = chooser.choice(
        [
            ("inspect", ("--input-shape", "--min-channels", "--json")),
            ("rewrite", ("--rank", "--only", "--skip", "--method", "--align", "--input-shape", "--data",
                         "--samples", "--labels", "--plan", "--json", "--save-plan", "--scale", "--mean",
                         "--image-size")),
            ("compare", ("--input-shape", "--data", "--samples", "--json", "--scale")),
            ("search", ("--macs", "--params", "--data", "--samples", "--json", "--max-error",
                        "--time-limit", "--batch")),
            ("trials", ("--trial", "--save-plan", "--json")),
        ]
    )  # fmt: skip
    first = ["in.onnx"] if chooser.random() < 0.9 else [chooser.choice(PATHS)]
    second = {"inspect": [], "compare": ["in.onnx"]}.get(command, ["out.onnx"])
    if chooser.random() < 0.15:
        second = [chooser.choice(PATHS)]
    if command == "trials":
        first, second = [chooser.choice(STORAGES)], []
    line = [command, *first, *second]
    if command == "rewrite" and chooser.random() < 0.8:
        line += ["--rank", "0.25"]
    if command == "search":
        line += ["--cost", "macs", *(["--macs", "0.5"] if chooser.random() < 0.8 else [])]
    for _ in range(chooser.choice([0, 1, 1, 2, 3])):
        name = chooser.choice(own if chooser.random() < 0.9 else tuple(OPTIONS))
        line += [name, chooser.choice(OPTIONS[name])]
    if chooser.random() < 0.3:
        line.append(chooser.choice(FLAGS))
    return line


STORAGES = (
    "sqlite:///", "sqlite:///none/x.db", "sqlite:///.", "sqlite:///in.onnx", "sqlite:////dev/null", "sqlite://h/x",
    "://",
    "journal:", "journal:in.onnx", "journal:/dev/null", "journal:.", "nosuch://x", "mysql://",
    "postgresql://a:b@[::1/x",
    "x", "", "sqlite+nosuch:///x.db", "sqlite:///x.db?mode=nosuch&uri=true",
    "sqlite:///" + "x" * 400, "sqlite:///x\ny",
)  # fmt: skip


def place(seed: str, folder: Path) -> list[str]:
    """Put the input of a case into an empty folder, and say which command is to be run there."""
    chooser = random.Random(seed)
    kind = chooser.choice(("model", "model", "samples", "labels", "plan", "words", "words"))
    made = mutated_model(chooser) if kind == "model" else whole_model(chooser).SerializeToString()
    (folder / "in.onnx").write_bytes(made)
    (folder / "link").symlink_to("in.onnx")
    if kind == "model":
        return chooser.choice(COMMANDS)
    if kind == "samples":
        name = chooser.choice(("x.npz", "x.npy"))
        (folder / name).write_bytes(samples(chooser))
        return [*chooser.choice(SAMPLED), "--data", name]
    if kind == "labels":
        (folder / "set").mkdir()
        for i in range(6):
            np.save(folder / "set" / f"{i}.npy", nets.signal(1, 16, 6, 6, seed=i))
        (folder / "l.csv").write_bytes(labels(chooser))
        return [*SAMPLED[0], "--data", "set", "--labels", "l.csv"]
    if kind == "plan":
        (folder / "p.json").write_bytes(plan(chooser))
        return ["rewrite", "in.onnx", "out.onnx", "--plan", "p.json", "--json", "r.json"]
    np.savez(folder / "x.npz", x=nets.signal(6, 16, 6, 6), y=np.arange(6) % 3)
    return words(chooser)


REWRITE = ["rewrite", "in.onnx", "out.onnx", "--rank", "0.25"]
COMMANDS = [
    ["inspect", "in.onnx", "--json", "r.json"],
    ["inspect", "in.onnx", "--linear", "--spectrum"],
    REWRITE,
    [*REWRITE, "--linear", "--allow-slower", "--min-channels", "1"],
    [*REWRITE, "--no-check", "--method", "spatial", "--allow-slower", "--min-channels", "1"],
    [*REWRITE, "--no-check", "--method", "auto", "--json", "r.json", "--save-plan", "s.json"],
    ["compare", "in.onnx", "in.onnx"],
    ["search", "in.onnx", "out.onnx", "--cost", "macs", "--macs", "0.5"],
]
SAMPLED = [REWRITE, ["compare", "in.onnx", "in.onnx"], [*COMMANDS[-1]], REWRITE]
