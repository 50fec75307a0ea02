"""The Python in a cell that also has magics and shell commands, as far as these are known."""

from __future__ import annotations

import re

_NEED = re.compile(r"^[ \t]*%%?gpu[ \t]+need\b.*$", re.MULTILINE)
_ASSIGNED = re.compile(r"([A-Za-z_]\w*(?:\s*,\s*[A-Za-z_]\w*)*)\s*=\s*([!%].*)")
_OPTIONS = re.compile(r"(?:-\w+\s*\d*\s+)*")

_RUNS_CODE = frozenset({"time", "timeit", "prun", "memit", "mprun", "lprun", "capture"})
_HARMLESS_WORDS = """
alias autoreload autosave bookmark cat cd colors conda config connect_info cp dhist dirs
doctest_mode env gpu hist history killbgscripts ldir less lf lk ll load_ext logoff logon logstart
logstate ls lx man matplotlib mkdir more mv notebook page pdoc pfile pinfo pinfo2 pip popd
precision psearch psource pushd pwd pycat quickref recall rehashx reload_ext rm rmdir set_env
subshell system sx tb unalias unload_ext uv who who_ls whos writefile xmode bash sh script html
HTML javascript js latex markdown svg SVG perl ruby file system_info
"""
_HARMLESS = frozenset(_HARMLESS_WORDS.split())
"""Magics that change no variable of the user's; that they are there is still a side effect."""


def without_needs(source: str) -> str:
    """Return `source` less its `%gpu need` lines, which do nothing when it runs again."""
    return _NEED.sub("", source) if "gpu" in source else source


def python_of(source: str) -> str | None:
    """Return what of a cell is Python, ``None`` if it has something unknown.

    What a magic assigns becomes ``None``.
    """
    stripped = source.lstrip()
    if stripped.startswith("%%"):
        line, _, body = stripped.partition("\n")
        name, _, rest = line[2:].partition(" ")
        if name in _RUNS_CODE:
            setup = _OPTIONS.sub("", rest, count=1) if name == "timeit" else ""
            return f"{setup}\n{python_of(body)}" if python_of(body) is not None else None
        return "" if name in _HARMLESS else None
    lines = [_python_of_line(line) for line in source.splitlines()]
    found = [line for line in lines if line is not None]
    return "\n".join(found) if len(found) == len(lines) else None


def _python_of_line(line: str) -> str | None:
    text = line.lstrip()
    indent = line[: len(line) - len(text)]
    if text.startswith("%"):
        name, _, rest = text[1:].partition(" ")
        if name in _RUNS_CODE:
            return indent + (_OPTIONS.sub("", rest, count=1) or "pass")
        return f"{indent}pass" if name in _HARMLESS else None
    if text.startswith(("!", "?")) or text.rstrip().endswith("?"):
        return f"{indent}pass"
    if (found := _ASSIGNED.fullmatch(text)) is not None:
        targets, made = found.groups()
        inner = "pass" if made.startswith("!") else _python_of_line(made)
        if inner is None:
            return None
        return f"{indent}{targets.split(',')[0]} = {'None' if inner == 'pass' else inner}"
    return line
