"""``python -m moiety`` is ``moiety``."""

from moiety.cli import main

main()
