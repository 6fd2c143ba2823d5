from .apply import carry_out as carry_out
from .apply import rewrite as rewrite
from .deciding import decided_units as decided_units
from .request import Request as Request
from .result import Result as Result
from .result import SiteReport as SiteReport
from .result import Totals as Totals
