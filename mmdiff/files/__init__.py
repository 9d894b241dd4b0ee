"""Files: written whole or not at all (`whole.py`), with checksums (`sums.py`), read within bounds (`reading.py`), JSON
and its lines (`json_text.py`), numbers that JSON has (`plain.py`), and what options name, looked at before the work
(`output.py`).

May import: nothing. Must not import torch.
"""

from .json_text import as_object, json_lines, json_object, parse_json
from .output import make_folder, output_file
from .plain import infinite_in, without_nan
from .reading import only_tensor, open_tensors, read_json, read_text, regular, unreadable, yaml_of
from .sums import SUMS, check_sums, damaged, digest, signed, write_sums
from .whole import aside, clear, commit, link, lock, locked, named, part_of, remove, sync, unlock, writable, write_text

__all__ = [
    "SUMS",
    "as_object",
    "aside",
    "check_sums",
    "clear",
    "commit",
    "damaged",
    "digest",
    "json_lines",
    "json_object",
    "link",
    "lock",
    "locked",
    "make_folder",
    "named",
    "only_tensor",
    "open_tensors",
    "output_file",
    "parse_json",
    "part_of",
    "read_json",
    "read_text",
    "regular",
    "remove",
    "signed",
    "sync",
    "unreadable",
    "unlock",
    "infinite_in",
    "without_nan",
    "writable",
    "write_sums",
    "write_text",
    "yaml_of",
]
