"""An ordinary MODEL on the wire of a job: what Quantize makes of it when it is to be baked."""
from dataclasses import dataclass
from typing import ClassVar

AS_SAMPLED, AS_INTENDED = "as sampled", "as intended"


@dataclass(frozen=True, repr=False)
class ModelDit:
    """A MODEL with whatever patches it carries, in the place of a `handles.Dit`: one file, no passes, no recipe of its own.

    It holds the MODEL itself, which ComfyUI keeps anyway as long as its node is in the graph. ways: what becomes of patches that
    ComfyUI takes and does not sample (AS_SAMPLED leaves them out). role: the expert that it is, `model` where nothing tells; two
    experts of a pair, saved one by one under the same title, get the names of a pair by it.
    """

    model: object
    name: str
    ways: str = AS_SAMPLED
    role: str = "model"
    passes: ClassVar[tuple] = ()
    options: ClassVar[str] = "{}"
    mix: ClassVar[str] = ""
    allow_quantized_source: ClassVar[bool] = True

    @property
    def roles(self) -> tuple[str, ...]:
        return (self.role,)

    @property
    def experts(self) -> tuple[tuple[str, str], ...]:
        return ((self.role, self.name),)

    def __repr__(self) -> str:
        return f"ModelDit({self.name})"
