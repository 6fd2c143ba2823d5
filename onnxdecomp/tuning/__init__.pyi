from .asking import tune as tune
from .engine import is_leader as is_leader
from .engine import processes as processes
from .engine import require_torch as require_torch
from .options import Tuning as Tuning
from .result import Gap as Gap
from .result import TuneResult as TuneResult
from .trained import find_trained as find_trained
