from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.kernel.needs import PRIORITIES, Need, parse_need, stated_in

GPU_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,20}", fullmatch=True)


@given(
    st.integers(1, 10**6),
    st.sampled_from([("MiB", 1 << 20), ("GiB", 1 << 30), ("MB", 10**6), ("b", 1)]),
    st.sampled_from(["", " "]),
    st.none() | st.sampled_from(sorted(PRIORITIES)),
    st.none() | GPU_NAMES,
    st.booleans(),
    st.randoms(),
)
def test_what_is_stated_is_read(number, unit, blank, priority, gpu, critical, random) -> None:
    name, factor = unit
    options = [["--critical"]] if critical else []
    options += [["--priority", priority]] if priority else []
    options += [["--prefer", gpu]] if gpu else []
    random.shuffle(options)
    words = " ".join([f"{number}{blank}{name}", *(w for option in options for w in option)])
    need = Need(number * factor, PRIORITIES[priority or "normal"], gpu, critical)
    assert parse_need(words) == need
    assert stated_in(f"x = 1\n  %gpu need {words}\ny = 2") == need
    assert stated_in(f"%%gpu need {words}\ny = 2") == need


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "size"),
        ("12", "no unit"),
        ("12 bananas", "unit"),
        ("0 MiB", "above 0"),
        ("-1GiB", "above 0"),
        ("-.5GiB", "above 0"),
        ("nan", "finite"),
        ("NaN GiB", "finite"),
        ("infGiB", "finite"),
        ("1e400GiB", "size"),
        ("9" * 60 + "GiB", "more than"),
        ("1GiB 2GiB", "size"),
        ("1GiB --priority urgent", "urgent"),
        ("1GiB --prefer", "--prefer"),
        ("1GiB --colour red", "colour"),
        ("1GiB 'open", "quotation"),
        ("one; import os", "size"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(words: str, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        parse_need(words)
    # The gate lets such a cell in, so that the magic in it can say what is wrong.
    assert stated_in(f"%gpu need {words}\nx = 1") is None


@given(st.text(max_size=60))
def test_any_text_is_a_need_or_bad_input(words: str) -> None:
    try:
        need = parse_need(words)
    except BadInputError:
        return
    assert need.bytes > 0


@pytest.mark.parametrize(
    "code", ["x = 1", "# %gpu need 1GiB", "print('%gpu need 1GiB')", "%gpu", "%gpu needs 1GiB"]
)
def test_a_cell_that_states_nothing(code: str) -> None:
    assert stated_in(code) is None
