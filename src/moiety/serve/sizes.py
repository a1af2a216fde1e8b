"""What a person may say about vLLM's engine: a short list, in a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moiety.bundle import papers
from moiety.errors import ConfigError
from moiety.files import read_toml

GIB = 2**30
Count = Annotated[int, Field(ge=1, le=2**20)]


class Sizes(BaseModel):
    """``engine.toml``. Names are vLLM's own, but for ``kv_cache_gib``.

    Everything else of vLLM's is fixed or left alone: much of it would run a request's tokens past
    the masks.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    dtype: Literal["float32", "bfloat16"] = "float32"
    tensor_parallel_size: Count = 1
    pipeline_parallel_size: Count = 1
    max_num_seqs: Count = 16
    max_model_len: Annotated[int, Field(ge=2, le=2**31)] | None = None
    kv_cache_gib: Annotated[float, Field(gt=0, le=2**16)] = 1.0
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    enforce_eager: bool = False

    def args(self, max_context: int) -> dict[str, Any]:
        """vLLM's arguments for an engine that takes texts of so many tokens."""
        told = self.model_dump(exclude={"kv_cache_gib", "gpu_memory_utilization"})
        # One more position than a text may have: vLLM always generates a token, also where only
        # a prompt's own are scored.
        told |= {
            "max_model_len": max_context + 1,
            "hf_overrides": {"max_position_embeddings": max_context + 1},
        }
        if self.gpu_memory_utilization is not None:
            return told | {"gpu_memory_utilization": self.gpu_memory_utilization}
        return told | {"kv_cache_memory_bytes": int(self.kv_cache_gib * GIB)}


def read_sizes(path: Path | None) -> Sizes:
    """What a file says; the usual sizes where there is none.

    Raises:
        ConfigError: not TOML, or not one of the few names, or not one of its values.
    """
    if path is None:
        return Sizes()
    try:
        return Sizes.model_validate(read_toml(path))
    except ValidationError as error:
        remedy = f"there are: {', '.join(Sizes.model_fields)}"
        raise ConfigError(papers.first_problem(error), where=path, remedy=remedy) from None
