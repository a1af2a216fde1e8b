"""``python -m moiety_vllm``: requests as JSON lines in, tokens as JSON lines out."""

from moiety_vllm.worker import main

# vLLM starts further processes that read this file again.
if __name__ == "__main__":
    main()
