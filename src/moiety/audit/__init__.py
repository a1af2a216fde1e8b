"""Does it leak: what a bundle and a release give away of the text they were made from.

The auditor shares no code with the audited: neither ``train`` nor ``privacy`` is imported here.
"""


from moiety.audit.auditing import AuditPlan, audit

__all__ = ["AuditPlan", "audit"]
