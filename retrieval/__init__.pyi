from .evaluation import evaluate as evaluate
from .frontier import OperatingPoint as OperatingPoint
from .frontier import ParetoFrontier as ParetoFrontier
from .question import Stored as Stored
from .question import Together as Together
from .question import Wish as Wish
from .retriever import Hits as Hits
from .retriever import Retriever as Retriever
from .tuning.auto import AutoRetriever as AutoRetriever
from .tuning.record import Tuning as Tuning
from .tuning.tuner import tune as tune

# isort: split
# What goes with them:
from .agreement import Agreement as Agreement
from .agreement import Agreements as Agreements
from .frontier import Conditions as Conditions
from .plotting import draw as draw
from .plotting import plot as plot
from .report import format_conditions as format_conditions
from .report import format_table as format_table
from .report import to_csv as to_csv
from .report import write_report as write_report
from .retriever import Hit as Hit
from .retriever import Step as Step
from .speed import disorder as disorder
from .speed import measure_speed as measure_speed
from .speed import measured_ms as measured_ms
from .tuning.candidates import spread as spread
from .tuning.cutoff import Cutoff as Cutoff
from .tuning.record import TUNING as TUNING
from .tuning.record import Budget as Budget
from .tuning.record import Escalation as Escalation
from .tuning.record import read_tuning as read_tuning
from .tuning.sample import TooFewQueriesError as TooFewQueriesError
