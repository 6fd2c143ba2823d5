"""Chains in the place of sites: collected for one model, then put in all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto

from onnxdecomp.factors import Chain, Floats
from onnxdecomp.ir import Anchor, Constant, Model, Scope, Spool, Survey, Tensor, is_external
from onnxdecomp.lowering.edits import Names, add_constants, forget_tensor, remove_dead, replace_nodes
from onnxdecomp.lowering.nodes import Wiring, chain_nodes, constant_tensor
from onnxdecomp.planning import Job


class Splicer:
    """Collects the chains of one model, then puts them all in.

    The survey's scopes and nodes are views of the model's protobuf: edits wait until `finish`, so that all
    of them stay valid.
    """

    def __init__(self, model: Model, found: Survey, scratch: Path | None) -> None:
        self._model = model
        self._scratch = scratch
        self._found = found
        self._names = Names(found.scopes)
        self._edits: dict[int, Sequence[NodeProto]] = {}
        self._constants: list[tuple[Constant, list[TensorProto]]] = []
        self._candidates: list[Tensor] = []
        self._vanished: list[tuple[Scope, str]] = []

    def install(self, job: Job, chain: Chain, biases: Sequence[Floats] | None = None) -> None:
        """Note the chain that replaces every Conv of `job`; its weights become tensors at once.

        `biases` are of the chains' last links, one per site of the job; None leaves them as they are.
        """
        lead = job.anchors[0].site.name
        names = [self._names.fresh(f"{lead}/{link.role}.weight") for link in chain.links]
        values = [link.weight.T if job.transposed else link.weight for link in chain.links]
        self._define(job.weight, dict(zip(names, values, strict=True)))
        for i, anchor in enumerate(job.anchors):
            self._replace(anchor, job, chain, tuple(names), biases[i] if biases is not None else None)

    def _replace(
        self, anchor: Anchor, job: Job, chain: Chain, weights: tuple[str, ...], moved: Floats | None
    ) -> None:
        conv, batchnorm = anchor.node, anchor.batchnorm if job.batchnorm is not None else None
        nodes = tuple(self._names.fresh(f"{anchor.site.name}/{link.role}") for link in chain.links)
        bias = conv.input[2] if len(conv.input) > 2 and conv.input[2] else None
        read = [conv.input[1]]
        if batchnorm is not None:
            read += [*batchnorm.node.input[1:], *filter(None, conv.input[2:3])]
            moved = batchnorm.affine(self._model.folder)[1] if moved is None else moved
            self._edits[id(batchnorm.node)] = ()
            self._vanished.append((anchor.scope, conv.output[0]))
        elif moved is not None:
            read += filter(None, conv.input[2:3])
        if moved is not None:
            bias = self._names.fresh(f"{nodes[-1]}.bias")
            self._define(job.weight, {bias: moved})
        zeros = None
        if anchor.site.op == "Gemm" and anchor.scope.opset < 11:  # C became optional in Gemm-11
            zeros = self._names.fresh(f"{nodes[0]}.bias")
            self._define(job.weight, {zeros: np.zeros(len(chain.links[0].weight))})
        wiring = Wiring(
            nodes=nodes,
            weights=weights,
            inner=tuple(self._names.fresh(f"{node}_output") for node in nodes[:-1]),
            output=batchnorm.node.output[0] if batchnorm is not None else conv.output[0],
            bias=bias,
            zeros=zeros,
        )
        self._edits[id(conv)] = chain_nodes(conv, chain.links, wiring)
        owners = ((anchor.scope.owner(name), name) for name in read)
        self._candidates += [owner.tensor(name) for owner, name in owners if owner is not None]

    def _define(self, weight: Constant, values: dict[str, Floats]) -> None:
        """Make tensors of the weight's element type, stored the way the weight is."""
        tensors = [constant_tensor(name, array, weight.data_type) for name, array in values.items()]
        if is_external(weight.stored):
            spool = self._model.spool or Spool.create(self._scratch)
            self._model = dataclasses.replace(self._model, spool=spool)
            for tensor in tensors:
                spool.store(tensor)
        self._constants.append((weight, tensors))

    def finish(self) -> Model:
        """The edited model."""
        proto = self._model.proto
        for weight, tensors in self._constants:
            add_constants(weight.scope, weight.name, tensors, proto.ir_version)
        for scope in self._found.scopes:
            replace_nodes(scope, self._edits)
        for scope, name in self._vanished:
            forget_tensor(scope, name)
        remove_dead(proto, self._candidates)
        return dataclasses.replace(self._model, path=None)
