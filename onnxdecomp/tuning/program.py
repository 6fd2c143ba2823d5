"""The executor: a model's main graph, up to some tensors, as a function of PyTorch with gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor

from onnxdecomp.ir import Array, Model, scopes
from onnxdecomp.runtime import Feeds, Outputs, is_floating
from onnxdecomp.tuning.constants import fold_constants
from onnxdecomp.tuning.operators.table import Function, find_function


@dataclass(frozen=True, slots=True)
class Step:
    """One node.

    Attributes:
        op: its operator, for messages.
        function: of its inputs; answers with a tensor or several.
        inputs: names, empty ones for what is absent.
        outputs: names, empty ones for what nobody asked for.
        last: tensors that nobody reads later.
    """

    op: str
    function: Function
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """A model up to some of its tensors, as PyTorch computes it; half precision is computed in single.

    Attributes:
        steps: in order.
        constants: tensors by name.
        parameters: tensors by name that are trained; of floats, with gradients.
        targets: the tensors that come out.
        missing: why others that were asked for do not, by name.
        fed: tensors inside that are given, as inputs are.
        ends: what operators put out that are not computed here; where it is fed, gradients end, and the
            program goes on.
        device: where it computes.
        nbytes: of all tensors on the way for one sample, once it was tried; 0 before.
    """

    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    targets: tuple[str, ...]
    missing: Mapping[str, str]
    fed: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    device: torch.device
    nbytes: int = 0

    @classmethod
    def of(
        cls,
        model: Model,
        targets: Iterable[str],
        parameters: Mapping[str, Array],
        device: str = "cpu",
        fed: Sequence[str] = (),
    ) -> Program:
        """The program of a model's main graph; nothing is run but what is constant.

        Args:
            model: the model.
            targets: names of tensors that are to come out. One that follows from an operator which is not
                computed here is missing: gradients end in front of that.
            parameters: values of the initialisers that are trained, in what precision they are to be.
            device: of PyTorch.
            fed: names of tensors inside that are given, whatever computes them.

        Raises:
            RunError, MissingExtraError: ONNX Runtime does not compute the constants.
        """
        where = torch.device(device)
        asked = tuple(targets)
        nodes, constants = fold_constants(model, parameters.keys(), asked)
        known = _tensors(constants, where)
        trained = {
            name: _laid_out(torch.tensor(value, device=where)).requires_grad_()
            for name, value in parameters.items()
        }
        inputs = {value.name for value in model.proto.graph.input} | set(fed)
        opset = scopes(model.proto)[0].opset
        nodes = [node for node in nodes if not set(node.output) & set(fed)]
        steps, missing, ends = _plan(nodes, inputs | trained.keys() | known.keys(), opset)
        made = cls(
            steps=tuple(steps),
            constants=known,
            parameters=trained,
            targets=asked,
            missing={},
            fed=tuple(fed),
            ends=tuple(ends),
            device=where,
        )
        computed = known.keys() | trained.keys() | inputs | {name for step in steps for name in step.outputs}
        nowhere = {name: f"nothing computes '{name}'" for name in asked if name not in computed}
        return made.less(nowhere | missing)

    def less(self, missing: Mapping[str, str]) -> Program:
        """The program without tensors that cannot, or need not, come out.

        Args:
            missing: why, by name of the tensor.
        """
        targets = tuple(name for name in self.targets if name not in missing)
        gone = {name: missing[name] for name in self.targets if name in missing}
        needed, steps = set(targets), []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                last = {name for name in (*step.inputs, *step.outputs) if name and name not in needed}
                steps.append(dataclasses.replace(step, last=tuple(last)))
                needed.update(step.inputs)
        return dataclasses.replace(
            self, steps=tuple(reversed(steps)), targets=targets, missing={**self.missing, **gone}
        )

    def given(self, feeds: Feeds, wanted: Outputs) -> Feeds:
        """What `run` takes.

        Args:
            feeds: of the model.
            wanted: what the teacher has, what is fed among it.
        """
        return {**feeds, **{name: wanted[name] for name in self.fed}}

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        """The targets by name, with gradients where those are on; `feeds` hold what is fed, too."""
        values = self._given(feeds)
        for step in self.steps:
            values |= _done(step, values)
            for name in step.last:
                values.pop(name, None)
        return {name: values[name] for name in self.targets}

    def tried(self, feeds: Feeds, rows: int = 1) -> Program:
        """The program less what turns out, on these inputs of so many samples, not to be computed here."""
        values = self._given(feeds)
        lost = {name: f"PyTorch has not the type of '{name}'" for name in feeds if name not in values}
        ends, nbytes = list(self.ends), 0
        with torch.no_grad():
            for step in self.steps:
                behind = next((lost[name] for name in step.inputs if name in lost), None)
                made = tuple(filter(None, step.outputs))
                try:
                    if behind is None:
                        values |= (done := _done(step, values))
                        nbytes += sum(each.nbytes for each in done.values())
                # What a function of the table refuses, and what PyTorch does.
                except (NotImplementedError, RuntimeError, IndexError) as error:
                    behind = f"{step.op}: {str(error).splitlines()[0]}"
                    ends += made
                if behind is not None:
                    lost |= dict.fromkeys(made, behind)
        return dataclasses.replace(self.less(lost), ends=tuple(ends), nbytes=nbytes // rows)

    def _given(self, feeds: Feeds) -> dict[str, Tensor]:
        return {**self.constants, **self.parameters, **_tensors(feeds, self.device)}


def _tensors(arrays: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    """Arrays as tensors: half precision as single, integers on the host; less what PyTorch has not."""
    found: dict[str, Tensor] = {}
    for name, value in ((name, np.asarray(value)) for name, value in arrays.items()):
        if is_floating(value.dtype):
            wide = value if value.dtype == np.float64 else value.astype(np.float32)
            found[name] = _laid_out(torch.tensor(wide, device=device))
        elif value.dtype.kind in "biu":
            found[name] = torch.tensor(value)
    return found


def _laid_out(tensor: Tensor) -> Tensor:
    """Channels last on GPUs, whose convolutions want that; on CPUs PyTorch blocks them as it likes."""
    if tensor.device.type == "cpu" or tensor.ndim != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def _plan(
    nodes: Sequence[NodeProto], known: set[str], opset: int
) -> tuple[list[Step], dict[str, str], list[str]]:
    """The steps that can be done; by name why other tensors cannot be had; and the first of these."""
    steps: list[Step] = []
    missing: dict[str, str] = {}
    ends: list[str] = []
    available = set(known)
    for node in nodes:
        absent = next((name for name in node.input if name and name not in available), None)
        function = (
            find_function(node, opset) if absent is None else missing.get(absent, f"no tensor '{absent}'")
        )
        outputs = tuple(filter(None, node.output))
        if isinstance(function, str):
            missing |= dict.fromkeys(outputs, function)
            ends += outputs if absent is None else ()
            continue
        available.update(outputs)
        steps.append(Step(node.op_type, function, tuple(node.input), tuple(node.output)))
    return steps, missing, ends


def _done(step: Step, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made = step.function(*(values[name] if name else None for name in step.inputs))
    several = made if isinstance(made, tuple | list) else (made,)
    return {name: value for name, value in zip(step.outputs, several, strict=False) if name}
