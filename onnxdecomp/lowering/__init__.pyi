from .chains import lower_chain as lower_chain
from .chains import lower_weights as lower_weights
from .nodes import constant_tensor as constant_tensor
from .splice import Splicer as Splicer
