"""The section of the model: its name, what it begins with, what of it is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from largebatch.recipes.config.mistakes import shown
from largebatch.recipes.keys import Pattern, Section, WeightsFile


class FirstWeights(Section):
    """Weights to begin with: of a safetensors ``file``, or ``pretrained`` ones by the name that timm or torchvision has
    for them, whose file is at hand."""

    file: WeightsFile | None = None
    pretrained: Annotated[str, Field(min_length=1)] | None = None  # a1_in1k of timm, IMAGENET1K_V2 of torchvision
    head: Literal["taken", "fresh"] = "taken"  # fresh: the layer that gives the outputs stays as it was initialised

    @property
    def words(self) -> str:
        return self.file or f"pretrained {self.pretrained}"

    @pydantic.model_validator(mode="after")
    def one_source(self) -> FirstWeights:
        if (self.file is None) == (self.pretrained is None):
            raise ValueError("give exactly one of model.weights.file and model.weights.pretrained")
        return self


class Model(BaseModel):
    """``name``, the weights to begin with, what is not trained, and whatever shapes that model's builder takes."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    __pydantic_extra__: dict[str, pydantic.JsonValue] = {}
    name: str
    weights: FirstWeights | None = None  # a path is its file; unset: fresh ones
    frozen: tuple[Pattern, ...] = ()  # neither trained nor, where they are running statistics, moved

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @pydantic.field_validator("weights", mode="before", json_schema_input_type=str | FirstWeights | None)
    @classmethod
    def path_of_file(cls, written: Any) -> Any:
        if isinstance(written, str):
            return {"file": written}
        if written is not None and not isinstance(written, (dict, FirstWeights)):
            raise ValueError(f"model.weights = {shown(written)} should be a path or {{file: PATH, head: fresh}}")
        return written

    @pydantic.field_serializer("weights")
    def as_a_path(self, weights: FirstWeights | None) -> Any:
        if weights is None or (weights.file is not None and weights.head == "taken"):
            return weights and weights.file
        return weights.model_dump(mode="json", exclude_none=True)
