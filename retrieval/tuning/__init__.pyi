from .record import FILE as FILE
from .record import Tuning as Tuning
from .sample import TooFewQueriesError as TooFewQueriesError
from .strategies import STRATEGIES as STRATEGIES
from .strategies import spread as spread
