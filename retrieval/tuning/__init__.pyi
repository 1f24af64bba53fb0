from .candidates import spread as spread
from .record import FILE as FILE
from .record import Tuning as Tuning
from .sample import TooFewQueriesError as TooFewQueriesError
