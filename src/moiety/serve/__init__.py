"""A release put to use by many at once, each request with the experts it may use.

Three names of the door are modules:

- ``jobs``    ``Job``, ``Step``, ``Ending``, ``Overloaded``: what an engine is asked and answers
- ``policy``  ``read_policy``, ``new_key``
- ``usage``   ``default_url``, ``export_usage``

Importing this room imports no torch; only ``load_engine`` and ``load_vllm`` do, when called. It
needs the extra ``serve``.
"""

from moiety.serve import jobs, policy, usage
from moiety.serve.loading import load_engine, load_vllm
from moiety.serve.server import ServePlan, Server

__all__ = ["ServePlan", "Server", "jobs", "load_engine", "load_vllm", "policy", "usage"]
