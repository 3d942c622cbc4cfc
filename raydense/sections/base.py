"""What every section of a configuration shares: its base class and the kinds of numbers."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Unsigned = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
TextEncoderLora = Literal["refuse", "leave_out"]  # what becomes of it where a LoRA file brings one
NetworkDtype = Literal["float32", "bfloat16", "float16"]
Share = Annotated[float, Field(ge=0, lt=1)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


def _no_path(name: str) -> str:
    if not re.fullmatch(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,99}", name):
        raise ValueError(
            f"{name!r} becomes part of a file's name; give 1 to 100 characters without / or \\ or a leading dot"
        )
    return name


Name = Annotated[str, AfterValidator(_no_path)]
_LABEL = r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"


def _label_selectors(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        named = re.fullmatch(rf"([a-z0-9.-]{{1,253}}/)?{_LABEL}", key)
        if not named or not re.fullmatch(rf"!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))", value):
            raise ValueError(
                f"{{{key!r}: {value!r}}} selects no node; expected a label and value, !value, in(a,b) or !in(a,b), "
                "such as {ray.io/market-type: spot}"
            )
    return labels


Labels = Annotated[dict[str, str], AfterValidator(_label_selectors)]  # that Ray's nodes must have


class Section(BaseModel):
    """Frozen, no unknown key, no infinite number, and no `true` where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and "bool" not in str(field.annotation):
                raise ValueError(
                    f"{key}={str(value).lower()} should be a {_plain(field.annotation)}, not true or false"
                )
        return values


def _plain(annotation: Any) -> str:
    return "number" if annotation in (int, float) or "int" in str(annotation) or "float" in str(annotation) else "text"
