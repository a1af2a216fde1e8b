"""Does it leak: what a bundle and a release give away of the text they were made from.

The auditor shares no code with the audited: neither ``train`` nor ``privacy`` is imported here.
The door is two modules and two names:

- ``pages``    the report of an audit as a folder with a page in it: ``write_report``
- ``tables``   an audit on the terminal: ``render_tables``
- ``AuditPlan``, ``audit``
"""

from moiety.audit import pages, tables
from moiety.audit.auditing import AuditPlan, audit

__all__ = ["AuditPlan", "audit", "pages", "tables"]
