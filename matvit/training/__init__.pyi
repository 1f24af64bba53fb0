from .data import LabelledPixels as LabelledPixels
from .distributed import Processes as Processes
from .recipes import recipe as recipe
from .run import check_run_folder as check_run_folder
from .run import train as train
from .schedule import of_length as of_length
from .teacher import Teacher as Teacher
from .teachers import open_teacher as open_teacher
