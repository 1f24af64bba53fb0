from .checks import IndexMismatchError as IndexMismatchError
from .corpus.corpus import Corpus as Corpus
from .index import ImageIndex as ImageIndex

# isort: split
# What goes with them:
from .adopt import AdoptReport as AdoptReport
from .atlas import Plane as Plane
from .atlas import write_atlas as write_atlas
from .compact import CompactReport as CompactReport
from .corpus.corpus import DecodedBatch as DecodedBatch
from .corpus.decoding import Decoders as Decoders
from .corpus.selection import Selection as Selection
from .duplicates import NEARLY_SAME as NEARLY_SAME
from .duplicates import Duplicates as Duplicates
from .duplicates import find_duplicates as find_duplicates
from .given import GivenVectors as GivenVectors
from .merge import AddReport as AddReport
from .records import Failure as Failure
from .records import ImageRecord as ImageRecord
from .relocate import RelocateReport as RelocateReport
from .remove import RemoveReport as RemoveReport
from .search.kinds import KINDS as KINDS
from .search.request import AUTO as AUTO
from .search.request import Effort as Effort
from .search.request import KindRequest as KindRequest
from .search.request import parse_bytes as parse_bytes
from .stores.opening import is_store as is_store
from .stores.opening import open_store as open_store
from .verification import Damage as Damage
from .verification import VerifyReport as VerifyReport
from .where import Where as Where
from .where import parse_time as parse_time

# isort: split
# An index that nobody has to open:
from .adopt import adopt_index as adopt_index
from .compact import compact_index as compact_index
from .given import read_given as read_given
from .images import IndexedImages as IndexedImages
from .images import Searcher as Searcher
from .images import describe_index as describe_index
from .relocate import relocate_index as relocate_index
from .remove import remove_images as remove_images
from .shards import build_from_shards as build_from_shards
from .shards import embed_shard as embed_shard
from .shards import shard_folder as shard_folder
from .store.folder import read_finished as read_finished
from .store.folder import read_manifest as read_manifest
from .store.lock import lock_file as lock_file
from .store.manifest import MANIFEST as MANIFEST
from .store.manifest import CorpusRecord as CorpusRecord
from .store.manifest import Manifest as Manifest
from .store.rows import read_failures as read_failures
from .stores.lance import write_lance as write_lance
from .stores.qdrant import write_qdrant as write_qdrant
from .stores.rows import write_parquet as write_parquet
from .verification import verify_index as verify_index
from .write import add_images as add_images
from .write import reopen_corpus as reopen_corpus
