"""What every section of a configuration shares: its base class and the kinds of numbers."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raydense.core.text import half_character

PositiveInt = Annotated[int, Field(ge=1)]
Unsigned = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
TextEncoderLora = Literal["refuse", "leave_out"]  # what becomes of it where a LoRA file brings one
NetworkDtype = Literal["float32", "bfloat16", "float16"]
Share = Annotated[float, Field(ge=0, lt=1)]
Device = Annotated[
    str,
    Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto: the GPU that its process sees, else the CPU."),
]
Revision = Annotated[
    str | None, Field(description="Branch, tag or commit of a hub id; null: its main branch, and for directories.")
]


_NAME_RULE = "1 to 100 characters without / or \\ or a leading dot"
_LABEL_RULE = "a label and value, !value, in(a,b) or !in(a,b)"


def _no_path(name: str) -> str:
    if not re.fullmatch(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,99}", name):
        raise ValueError(f"{name!r} becomes part of a file's name; give {_NAME_RULE}")
    return name


Name = Annotated[str, AfterValidator(_no_path), Field(json_schema_extra={"rule": _NAME_RULE})]
_LABEL = r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"


def _label_selectors(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        named = re.fullmatch(rf"([a-z0-9.-]{{1,253}}/)?{_LABEL}", key)
        if not named or not re.fullmatch(rf"!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))", value):
            raise ValueError(
                f"{{{key!r}: {value!r}}} selects no node; expected {_LABEL_RULE}, such as {{ray.io/market-type: spot}}"
            )
    return labels


Labels = Annotated[  # that Ray's nodes must have
    dict[str, str], AfterValidator(_label_selectors), Field(json_schema_extra={"rule": _LABEL_RULE})
]


def _height_and_width(size: Any) -> Any:
    edges = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if size is not None and not all(isinstance(e, int) and not isinstance(e, bool) and e >= 1 for e in edges):
        raise ValueError(f"{size!r} is no size; give one number or [height, width], such as 64 or [96, 64]")
    return size


Size = Annotated[int | tuple[int, int] | None, BeforeValidator(_height_and_width)]  # one number: of a square


class Section(BaseModel):
    """Frozen, no unknown key, no infinite number, no `true` where a number belongs, no half character in a text.

    The string under a setting is its description in the schema, which has what is allowed and the default already:
    `reference` makes README.md beside this file of them, and `commented` what `raydense config` prints.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _whole_characters(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, str) and (half := half_character(value)):
                raise ValueError(
                    f"{key}={value!r} holds {half}, half of a character or a byte that is no UTF-8; write it anew"
                )
        return values

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and "bool" not in str(field.annotation):
                raise ValueError(
                    f"{key}={str(value).lower()} should be a {_expected(field.annotation)}, not true or false"
                )
        return values


def _expected(annotation: Any) -> str:
    return "number" if annotation in (int, float) or "int" in str(annotation) or "float" in str(annotation) else "text"
