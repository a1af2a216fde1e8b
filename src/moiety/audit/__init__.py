"""Does it leak: what a bundle and a release give away of the text they were made from.

The door is two modules:

- ``pages``    the report of an audit as a folder with a page in it: ``write_report``
- ``tables``   an audit on the terminal
"""

from moiety.audit import pages, tables

__all__ = ["pages", "tables"]
