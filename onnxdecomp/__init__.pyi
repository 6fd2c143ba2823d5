from .comparing import Fidelity as Fidelity
from .comparing import compare as compare
from .errors import CheckError as CheckError
from .errors import GoalError as GoalError
from .errors import MissingExtraError as MissingExtraError
from .errors import ModelError as ModelError
from .errors import NothingSelectedError as NothingSelectedError
from .errors import OnnxdecompError as OnnxdecompError
from .errors import OutputError as OutputError
from .errors import RunError as RunError
from .errors import UsageError as UsageError
from .factors import Ranks as Ranks
from .ir import Site as Site
from .ir import find_sites as find_sites
from .planning import Choice as Choice
from .planning import Plan as Plan
from .planning import Policy as Policy
from .rewriting import Result as Result
from .rewriting import SiteReport as SiteReport
from .rewriting import Totals as Totals
from .rewriting import rewrite as rewrite
from .sampling import Preprocessing as Preprocessing
from .sampling import Samples as Samples
from .sampling import open_samples as open_samples
from .sampling import read_labels as read_labels

__version__: str
