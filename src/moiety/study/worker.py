"""Pieces of a study in a process of its own: ``python -m moiety.study.worker OUT``.

The plan is the first line of standard input, the name of a piece each further one. Each is answered
by a line on standard output: 0 done, 2 refused or bad input. What else is said goes to the piece's
log, the error in its last line. The process lives on, because loading torch takes longer than most
pieces.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import transformers

from moiety.errors import MoietyError
from moiety.study.pieces import Piece, all_pieces
from moiety.study.places import Study
from moiety.study.plan import Plan


def main(out: Path) -> None:
    """Does what it is told until nothing more comes."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Libraries print where they like: the answers' way out is kept from them.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        study = Study(Plan.from_json(sys.stdin.readline().encode()), out)
        pieces = all_pieces(study)
        for line in sys.stdin:
            piece = pieces[line.strip()]
            _speak_into(study.log(piece.name))
            answers.write(f"{_do(piece)}\n")
            answers.flush()


def _do(piece: Piece) -> int:
    try:
        piece.do()
    except MoietyError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _speak_into(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
