from .data import LabelledPixels as LabelledPixels
from .distributed import Processes as Processes
from .recipes import recipe as recipe
from .run import train as train
