from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.errors import KernelLinkError
from jupyter_gpu_predict.kernel import messages as m

VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**63 - 1),
    float: st.floats(0, 1e12, allow_nan=False),
    str: st.text(max_size=20),
    bool: st.booleans(),
    int | None: st.none() | st.integers(0, 2**40),
    float | None: st.none() | st.floats(0, 1e6),
    str | None: st.none() | st.text(max_size=20),
    dict[str, int]: st.dictionaries(st.text(max_size=8), st.integers(0, 2**40), max_size=3),
    dict[str, Any]: st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    tuple[str, ...]: st.lists(st.text(max_size=8), max_size=3),
    Any: st.none() | st.text(max_size=8) | st.lists(st.integers(), max_size=3),
}
ALL = (*m.REQUESTS, *m.NOTICES)


def any_message(cls: type[m.Message]) -> st.SearchStrategy[m.Message]:
    hints = get_type_hints(cls)
    return st.builds(cls, **{f.name: VALUES[hints[f.name]] for f in fields(cls)})


@given(st.sampled_from(ALL).flatmap(any_message))
def test_a_message_survives_the_wire(message: m.Message) -> None:
    assert m.decode(type(message), json.loads(json.dumps(message.content()))) == message


@given(st.sampled_from(ALL).flatmap(any_message), st.text(min_size=30), st.integers())
def test_an_unknown_field_is_ignored(message: m.Message, name: str, value: int) -> None:
    assert m.decode(type(message), {**message.content(), name: value}) == message


@given(st.sampled_from(ALL).flatmap(any_message), st.integers() | st.none() | st.text())
def test_an_unknown_version_is_refused_by_name(message: m.Message, version: Any) -> None:
    if version == m.VERSION:
        return
    with pytest.raises(KernelLinkError, match=type(message).msg_type):
        m.decode(type(message), {**message.content(), "version": version})


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.msg_type)
def test_a_missing_field_is_named(cls: type[m.Message]) -> None:
    for field in fields(cls):
        if field.default is MISSING and field.default_factory is MISSING:
            others = {f.name: None for f in fields(cls) if f is not field}
            with pytest.raises(KernelLinkError, match=repr(field.name)):
                m.decode(cls, {"version": m.VERSION, **others})


def test_every_type_of_ours_and_its_reply_is_no_activity_of_a_user() -> None:
    for cls in ALL:
        assert cls.msg_type.startswith("gpu_")
        assert cls.msg_type in m.UNTRACKED
    for cls in m.REQUESTS:
        assert cls.msg_type.replace("_request", "_reply") in m.UNTRACKED
    assert len({cls.msg_type for cls in ALL}) == len(ALL)
