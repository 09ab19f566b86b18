"""Answers as columns of a table: which types they have, and one table of many that were typed apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow
from pydantic import BaseModel

_PLAIN = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}


def answer_schema(kind: type[BaseModel]) -> pyarrow.Schema:
    """The columns of answers: the fields of ``kind``, then "error".

    A field that no type of Arrow holds, such as one that is either a number or a text, is JSON in a text.

    Args:
        kind: of the answers.
    """
    fields = {name: _type(field.annotation) or pyarrow.string() for name, field in kind.model_fields.items()}
    return pyarrow.schema({**fields, "error": pyarrow.string()})


def _type(kind: Any, inside: Sequence[Any] = ()) -> pyarrow.DataType | None:
    origin, parts = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in inside:  # a tree of any depth
        return None
    if origin is Annotated:
        return _type(parts[0], inside)
    if origin in (Union, UnionType):
        types = [_type(part, inside) for part in parts if part is not NoneType]
        return types[0] if all(one == types[0] for one in types) else None
    if origin is Literal:
        types = [_PLAIN.get(type(part)) for part in parts]
        return types[0] if all(one == types[0] for one in types) else None
    if origin is list:
        item = _type(parts[0], inside)
        return None if item is None else pyarrow.list_(item)
    if origin is dict and parts[0] is str:
        item = _type(parts[1], inside)
        return None if item is None else pyarrow.map_(pyarrow.string(), item)
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.model_fields:
        fields = {name: _type(field.annotation, [*inside, kind]) for name, field in kind.model_fields.items()}
        return None if None in fields.values() else pyarrow.struct(list(fields.items()))
    return None


def answer_columns(answers: Sequence[Mapping[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    """Answers as a table.

    Args:
        answers: the fields of each, or its "error".
        schema: of :func:`answer_schema`.
    """
    columns = []
    for field in schema:
        values = [answer.get(field.name) for answer in answers]
        columns.append(pyarrow.array(texts(values) if field.type == pyarrow.string() else values, type=field.type))
    return pyarrow.Table.from_arrays(columns, schema=schema)


def row_columns(rows: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    """Rows of a text file as a table of all their columns, each of the type its values have, or as :func:`texts`."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _array([row.get(name) for row in rows]) for name in names}
    return pyarrow.table(columns) if columns else pyarrow.table({"": pyarrow.nulls(len(rows))}).select([])


def _array(values: Sequence[Any]) -> pyarrow.Array:
    try:
        found = pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):  # values of several types
        found = None
    # Parquet holds no object without a field.
    return pyarrow.array(texts(values), pyarrow.string()) if found is None or "struct<>" in str(found.type) else found


def texts(values: Iterable[Any]) -> list[str | None]:
    """Each value as a text: one that is none as JSON."""
    return [value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            for value in values]  # fmt: skip


def common_schema(schemas: Iterable[pyarrow.Schema]) -> pyarrow.Schema:
    """A schema with the columns of all ``schemas``, each of a type that holds the values of all, or text."""
    fields: dict[str, pyarrow.Field] = {}
    for schema in schemas:
        for field in schema:
            known = fields.setdefault(field.name, field)
            if known.type != field.type:
                fields[field.name] = _common(known, field)
    return pyarrow.schema(fields.values())


def _common(one: pyarrow.Field, other: pyarrow.Field) -> pyarrow.Field:
    try:
        return pyarrow.unify_schemas([pyarrow.schema([one]), pyarrow.schema([other])],
                                     promote_options="permissive").field(0)  # fmt: skip
    except pyarrow.ArrowException:
        return pyarrow.field(one.name, pyarrow.string())


def fit(table: pyarrow.Table, schema: pyarrow.Schema) -> pyarrow.Table:
    """``table`` with the columns of a :func:`common_schema`; what it lacks is null."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pyarrow.nulls(len(table), field.type))
        elif (column := table[field.name]).type == field.type:
            columns.append(column)
        elif field.type == pyarrow.string() and column.type != pyarrow.null():
            columns.append(pyarrow.array(texts(column.to_pylist()), field.type))
        else:
            columns.append(column.cast(field.type, safe=False))  # whole numbers beyond 2 ** 53 beside broken ones
    return pyarrow.Table.from_arrays(columns, schema=schema)
