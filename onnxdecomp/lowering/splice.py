"""Chains in the place of sites: collected for one model, then put into a copy of it all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from onnx import NodeProto, TensorProto

from onnxdecomp.factors import Chain, Floats
from onnxdecomp.ir import Anchor, Constant, Model, Scope, Spool, Survey, TensorKey, scopes
from onnxdecomp.lowering.chains import lower_chain, lower_weights
from onnxdecomp.lowering.edits import Names, add_constants, forget_tensor, replace_nodes
from onnxdecomp.lowering.sweeping import remove_dead


class Splicer:
    """Collects the chains of one model, then puts them all into a copy of it.

    The model stays as it is, and so do the survey's views of its protobuf: one survey serves many models.
    """

    def __init__(self, found: Survey, scratch: Path | None) -> None:
        """
        Args:
            found: of the original.
            scratch: folder for the factors of external weights until they are saved; None is the system's.
        """
        self._model = found.model
        self._scratch = scratch
        self._found = found
        self._names = Names(found.scopes)
        self._spool: Spool | None = found.model.spool
        self._edits: dict[int, Sequence[NodeProto]] = {}
        self._constants: list[tuple[Constant, list[TensorProto]]] = []
        self._unread: list[TensorKey] = []
        self._vanished: list[tuple[Scope, str]] = []

    def install(
        self, anchors: Sequence[Anchor], chain: Chain, biases: Sequence[Floats] | None = None
    ) -> None:
        """Note the chain that replaces sites which share a weight; its own weights become tensors at once.

        Args:
            anchors: of the sites.
            chain: for all of them.
            biases: of the chains' last links, one per site; None leaves them as they are.
        """
        lead = anchors[0]
        names = [self._names.fresh(f"{lead.site.name}/{link.role}.weight") for link in chain.links]
        self._define(lead.constant, lower_weights(lead, chain, names))
        for i, anchor in enumerate(anchors):
            lowered = lower_chain(
                anchor,
                chain,
                names,
                bias=biases[i] if biases is not None else None,
                folder=self._model.folder,
                fresh=self._names.fresh,
            )
            for tensor in lowered.tensors:
                self._define(lead.constant, [tensor])
            self._edits |= {id(node): () for node in lowered.replaced} | {id(anchor.node): lowered.nodes}
            self._vanished += [(anchor.scope, node.output[0]) for node in lowered.replaced[:-1]]
            owners = ((anchor.scope.owner(name), name) for name in lowered.unread)
            self._unread += [owner.tensor(name) for owner, name in owners if owner is not None]

    def _define(self, weight: Constant, tensors: list[TensorProto]) -> None:
        """Let `tensors` stand where the weight stands, stored the way it is."""
        if weight.external:
            self._spool = self._spool or Spool.create(self._scratch)
            for tensor in tensors:
                self._spool.store(tensor)
        self._constants.append((weight, tensors))

    def finish(self) -> Model:
        """The model with all chains in their places."""
        model = dataclasses.replace(self._model.copy(), path=None, spool=self._spool)
        # What was noted of a scope or a node is done to its twin in the copy, which stands at the same place.
        pairs = list(zip(self._found.scopes, scopes(model.proto), strict=True))
        twins = {id(old.body): new for old, new in pairs}
        nodes = [each for old, new in pairs for each in zip(old.body.node, new.body.node, strict=True)]
        edits = {id(twin): self._edits[id(node)] for node, twin in nodes if id(node) in self._edits}
        for weight, tensors in self._constants:
            add_constants(twins[id(weight.scope.body)], weight.name, tensors, model.proto.ir_version)
        for scope in twins.values():
            replace_nodes(scope, edits)
        for scope, name in self._vanished:
            forget_tensor(twins[id(scope.body)], name)
        remove_dead(
            model, [twins[body].tensor(name) for body, name in self._unread], freeze=self._found.freeze
        )
        return model
