from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.sizes import MAX_BYTES, format_bytes, parse_bytes
from jupyter_gpu_predict.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GiB", 12 << 30),
        ("512 MiB", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("  0 B ", 0),
        ("7b", 7),
        (".5kib", 512),
        ("1.KB", 1000),
        ("0.3 B", 1),
        ("9007199254740993 B", 9_007_199_254_740_993),
        (f"{MAX_BYTES}B", MAX_BYTES),
    ],
)
def test_sizes_people_write(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("12", "no unit"),
        ("1.5", "no unit"),
        ("-1GiB", "negative"),
        ("- 1 GiB", "negative"),
        ("nan GiB", "finite"),
        ("inf", "finite"),
        ("+infinity B", "finite"),
        ("1e400 GiB", "not a size"),
        ("1 GiB 2", "not a size"),
        ("GiB", "not a size"),
        ("1_000 B", "not a size"),
        ("١٢ GiB", "not a size"),
        ("1\x00GiB", "not a size"),
        ("12 G", "unknown unit 'G'"),
        ("3 parsecs", "unknown unit"),
        ("9" * 300 + "GiB", "longer than"),
        (f"{MAX_BYTES + 1}B", "more than"),
        ("99999999 PiB", "more than"),
    ],
)
def test_what_is_no_size_is_refused_with_its_reason(text: str, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        parse_bytes(text)


@pytest.mark.parametrize("value", [12, 1.5, None, b"1 GiB"])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(BadInputError, match="with a unit"):
        parse_bytes(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 30) - 1, "1 GiB"),
        (512 << 20, "512 MiB"),
        (-(3 << 40), "-3 TiB"),
        (2 << 50, "2 PiB"),
    ],
)
def test_sizes_people_read(size: int, text: str) -> None:
    assert format_bytes(size) == text


@settings(deadline=None)
@given(st.integers(0, 1 << 62))
def test_a_shown_size_reads_back_within_half_a_percent(size: int) -> None:
    assert abs(parse_bytes(format_bytes(size)) - size) <= size * 0.005 + 1


@settings(deadline=None)
@given(st.integers(1, 1023), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB", "PiB"]))
def test_whole_units_read_back_exactly(number: int, unit: str) -> None:
    size = parse_bytes(f"{number} {unit}")
    assert format_bytes(size) == f"{number} {unit}"
    assert parse_bytes(format_bytes(size)) == size


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        size = parse_bytes(text)
    except BadInputError:
        return
    assert 0 <= size <= MAX_BYTES
