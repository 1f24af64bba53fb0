from .conversion import CUT as CUT
from .conversion import REORDERED as REORDERED
from .conversion import TRAINED as TRAINED
from .conversion import check_target as check_target
from .conversion import conversion_recipe as conversion_recipe
from .conversion import convert as convert
from .conversion import split as split
from .from_timm import from_timm as from_timm
