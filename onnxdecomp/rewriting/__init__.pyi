from .apply import Track as Track
from .apply import rewrite as rewrite
from .request import Request as Request
from .result import Result as Result
from .result import SiteReport as SiteReport
from .result import Totals as Totals
