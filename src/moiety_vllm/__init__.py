"""The part of moiety that runs inside vLLM, in an environment and a process of its own.

It imports the standard library, torch and vllm, and never ``moiety``: the two environments need not
fit together. ``python -m moiety_vllm`` is what ``moiety serve --engine vllm`` starts.
"""
