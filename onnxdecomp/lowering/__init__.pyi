from .nodes import Wiring as Wiring
from .nodes import chain_nodes as chain_nodes
from .nodes import constant_tensor as constant_tensor
from .splice import Splicer as Splicer
