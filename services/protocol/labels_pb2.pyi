from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OneLabel(_message.Message):
    __slots__ = ("id", "text", "number", "flag", "revision")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    number: float
    flag: bool
    revision: int
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ..., number: _Optional[float] = ..., flag: _Optional[bool] = ..., revision: _Optional[int] = ...) -> None: ...

class LabelRequest(_message.Message):
    __slots__ = ("labels",)
    LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[OneLabel]
    def __init__(self, labels: _Optional[_Iterable[_Union[OneLabel, _Mapping]]] = ...) -> None: ...

class LabelResponse(_message.Message):
    __slots__ = ("accepted", "offsets")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    offsets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, accepted: _Optional[int] = ..., offsets: _Optional[_Iterable[str]] = ...) -> None: ...
