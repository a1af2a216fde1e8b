"""One piece of a study in a process of its own: ``python -m moiety.study.worker OUT PIECE``.

The plan comes through standard input. Exits 0 done, 2 refused or bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers

from moiety.errors import MoietyError
from moiety.study.pieces import all_pieces
from moiety.study.places import Study
from moiety.study.plan import Plan


def main(arguments: list[str], plan: bytes) -> int:
    """Does the piece named; what went wrong is the last line of stderr."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    out, name = arguments
    try:
        all_pieces(Study(Plan.from_json(plan), Path(out)))[name].do()
    except MoietyError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt as error:
        sys.stderr.write(f"interrupted: {error}\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin.buffer.read()))
