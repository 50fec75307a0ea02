"""What a cell's source says before it runs, read without running it."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

MAX_SOURCE = 50_000
"""Characters of a source that are read; a longer one is read by its words, and so far only."""

_GPU_LIBRARIES = """
accelerate bitsandbytes cudf cugraph cuml cupy diffusers fastai flax jax keras lightning numba.cuda
optax pycuda pytorch_lightning rmm sentence_transformers tensorflow timm torch torchvision
transformers triton ultralytics vllm
"""
GPU_LIBRARIES = frozenset(_GPU_LIBRARIES.split())
"""Libraries that use a GPU where there is one; boosting libraries do so only when told to."""

_BUILTINS = frozenset(vars(builtins))
_ASKS = """
is_available device_count get_device_name get_device_properties current_device manual_seed seed
list_physical_devices
"""
_ASKING = frozenset(_ASKS.split())
"""Calls that look at a GPU, or at its random numbers, and take no memory of it worth the name."""

_TRAINING = frozenset({"backward", "fit", "fit_generator", "train", "train_on_batch", "finetune"})
_DEVICE = re.compile(r"(?:cuda|gpu)(?::\d+)?|gpu_hist", re.IGNORECASE)
_DEVICE_NAME = re.compile(r"(?:.*_)?(?:device|dev|gpu|cuda)\d?", re.IGNORECASE)
_DEVICE_KEYWORDS = frozenset({"device", "device_map", "device_type", "accelerator", "tree_method"})
_EPOCHS = re.compile(r"(?:n_|num_|max_)?(?:train_)?epochs?", re.IGNORECASE)
_BATCH = re.compile(r"(?:\w+_)?(?:batch_?size|bs)", re.IGNORECASE)
_SHOWING = frozenset({"print", "display", "plt", "sns", "fig", "ax", "len", "help"})

_CELL_MAGICS = frozenset({"%%time", "%%timeit", "%%capture", "%%prun", "%%memit", "%%gpu"})
"""Cell magics that run the rest of the cell as Python."""

_LINE_MAGICS = frozenset({"%time", "%timeit", "%prun", "%memit"})

_IMPORT_WORDS = re.compile(r"^[ \t]*(?:import|from)[ \t]+([\w.]+)", re.MULTILINE)
_MOVES_WORDS = re.compile(r"\.cuda\(|\.to\(\s*(?:device|['\"]cuda)|device\s*=\s*['\"]cuda")
_TRAIN_WORDS = re.compile(r"\.(?:backward|fit|train_on_batch)\(")
_LOOP_WORDS = re.compile(r"^[ \t]*(?:for|while)\b", re.MULTILINE)
_NUMBER_WORDS = re.compile(r"\b(\w*(?:epochs?|batch_?size))\s*=\s*(\d{1,9})\b", re.IGNORECASE)


class GpuUse(str, Enum):
    """How a source speaks of a GPU, weakest first."""

    NONE = "none"
    LIBRARY = "library"
    READS = "reads"
    MOVES = "moves"
    TRAINS = "trains"


class CellKind(str, Enum):
    """What a cell is for, as far as its statements say."""

    EMPTY = "empty"
    DEFINES = "defines"
    SHOWS = "shows"
    WORKS = "works"


@dataclass(frozen=True, slots=True)
class SourceReading:
    """What a source says.

    `read_by` is ``"syntax"``, or ``"words"`` where it is no Python or too long; `reads` and
    `writes` are global names less those of imports, `moved` those whose objects it puts on a GPU;
    all are empty in the latter case. `gpu` is `READS` only in a document, where it is known which
    names hold things of a GPU. `gpu_libraries` are the imported ones. `epochs`
    and `batch_size` are whole numbers written out, the largest of each; `magics` the magics and
    ``!`` in order.
    """

    read_by: str
    kind: CellKind
    gpu: GpuUse
    imports: frozenset[str] = frozenset()
    gpu_libraries: frozenset[str] = frozenset()
    magics: tuple[str, ...] = ()
    loops: int = 0
    epochs: int | None = None
    batch_size: int | None = None
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    moved: frozenset[str] = frozenset()


@lru_cache(maxsize=4096)
def read_source(source: str) -> SourceReading:
    """Return what a cell's source says; never raises, whatever the text is."""
    python, magics = _python_of(source[:MAX_SOURCE])
    if len(source) <= MAX_SOURCE:
        try:
            with warnings.catch_warnings():
                # Of the user's own code, and not for the log of whoever reads it.
                warnings.simplefilter("ignore")
                tree = ast.parse(python)
                names = _names(symtable.symtable(python, "cell", "exec"))
            return _by_syntax(tree, magics, *names)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass
    return _by_words(source[:MAX_SOURCE], magics)


def _python_of(source: str) -> tuple[str, tuple[str, ...]]:
    """Return the Python of a source, with ``pass`` for shell commands, and its magics."""
    magics: list[str] = []
    stripped = source.lstrip()
    if stripped.startswith("%%"):
        first, _, source = stripped.partition("\n")
        magics.append(first.split()[0])
        if magics[0] not in _CELL_MAGICS:
            return "", tuple(magics)
    lines = [_python_of_line(line, magics) for line in source.split("\n")]
    return "\n".join(lines), tuple(magics)


def _python_of_line(line: str, magics: list[str]) -> str:
    text = line.lstrip()
    indent = line[: len(line) - len(text)]
    if text.startswith(("!", "%")):
        word, _, rest = text.partition(" ")
        magics.append("!" if word.startswith("!") else word)
        runs = word in _LINE_MAGICS and not rest.startswith("-")
        return indent + (rest if runs and rest else "pass")
    if text.startswith("?") or (text.endswith("?") and "#" not in text):
        return f"{indent}pass"
    target, equals, value = text.partition("=")
    value = value.lstrip()
    if equals and value.startswith(("!", "%")) and target.replace(",", "").split():
        magics.append("!" if value.startswith("!") else value.split()[0])
        return f"{indent}{target}= None"
    return line


# ---------------------------------------------------------------- syntax


def _names(table: symtable.SymbolTable) -> tuple[frozenset[str], frozenset[str]]:
    """Return the global names that a cell reads and those that it binds."""
    reads: set[str] = set()
    writes: set[str] = set()
    imported: set[str] = set()
    waiting = [(table, True)]
    while waiting:
        scope, top = waiting.pop()
        for symbol in scope.get_symbols():
            name = symbol.get_name()
            if not (top or symbol.is_global()):
                continue
            if symbol.is_imported():
                imported.add(name)
            if symbol.is_assigned() or symbol.is_namespace():
                writes.add(name)
            if symbol.is_referenced():
                reads.add(name)
        waiting.extend((child, False) for child in scope.get_children())
    return frozenset(reads - _BUILTINS - imported), frozenset(writes - imported)


def _by_syntax(
    tree: ast.Module, magics: tuple[str, ...], reads: frozenset[str], writes: frozenset[str]
) -> SourceReading:
    imports: set[str] = set()
    moved: set[str] = set()
    moves = trains = uses = False
    loops = 0
    numbers: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.update(f"{node.module}.{alias.name}" for alias in node.names if node.module)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
            loops += 1
            _note_epochs(node, numbers)
        elif isinstance(node, ast.Call):
            name = _called(node)
            if name == "cuda" or _moves(node, name):
                moves = True
                moved.add(_root(node.func))
            trains |= name in _TRAINING
            uses |= _root(node.func) in GPU_LIBRARIES and name not in _ASKING
            _note_numbers(((k.arg, k.value) for k in node.keywords), numbers)
        elif isinstance(node, ast.Assign):
            targets = ((t.id, node.value) for t in node.targets if isinstance(t, ast.Name))
            _note_numbers(targets, numbers)
    libraries = _libraries(imports)
    known = bool(libraries) or uses or moves
    return SourceReading(
        read_by="syntax",
        kind=_kind(tree.body, magics),
        gpu=_use(known=known, moves=moves, trains=trains and known),
        imports=frozenset(name.partition(".")[0] for name in imports),
        gpu_libraries=libraries,
        magics=magics,
        loops=loops,
        epochs=numbers.get("epochs"),
        batch_size=numbers.get("batch_size"),
        reads=reads,
        writes=writes,
        moved=frozenset(moved & reads - GPU_LIBRARIES),
    )


def _use(*, known: bool, moves: bool, trains: bool) -> GpuUse:
    if trains:
        return GpuUse.TRAINS
    if moves:
        return GpuUse.MOVES
    return GpuUse.LIBRARY if known else GpuUse.NONE


def _libraries(imports: Iterable[str]) -> frozenset[str]:
    roots = {part for name in imports for part in (name.partition(".")[0], name)}
    return frozenset(roots & GPU_LIBRARIES)


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _root(node: ast.expr) -> str:
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _moves(node: ast.Call, name: str) -> bool:
    """Whether a call puts something on a GPU by name."""
    if name == "to" and any(_is_device(argument) for argument in node.args):
        return True
    return any(k.arg in _DEVICE_KEYWORDS and _is_device(k.value) for k in node.keywords)


def _is_device(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and _DEVICE.fullmatch(node.value) is not None
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return _DEVICE_NAME.fullmatch(name) is not None


def _note_numbers(pairs: Iterable[tuple[str | None, ast.expr]], numbers: dict[str, int]) -> None:
    for name, value in pairs:
        if isinstance(value, ast.Constant) and type(value.value) is int:
            _note(name or "", value.value, numbers)


def _note_epochs(node: ast.For | ast.AsyncFor | ast.While, numbers: dict[str, int]) -> None:
    if isinstance(node, ast.While) or not isinstance(node.target, ast.Name):
        return
    if isinstance(node.iter, ast.Call) and _called(node.iter) in {"range", "trange"}:
        last = node.iter.args[-1:]
        _note_numbers(((node.target.id, value) for value in last), numbers)


def _note(name: str, value: int, numbers: dict[str, int]) -> None:
    for key, pattern in (("epochs", _EPOCHS), ("batch_size", _BATCH)):
        if pattern.fullmatch(name) and 0 <= value < 10**9:
            numbers[key] = max(value, numbers.get(key, 0))


def _kind(body: list[ast.stmt], magics: tuple[str, ...]) -> CellKind:
    statements = [s for s in body if not isinstance(s, ast.Pass)]
    if not statements:
        return CellKind.WORKS if magics else CellKind.EMPTY
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    if all(isinstance(s, defining) for s in statements):
        return CellKind.DEFINES
    return CellKind.SHOWS if all(map(_shows, statements)) else CellKind.WORKS


def _shows(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    if isinstance(value, ast.Call):
        return _root(value) in _SHOWING or _called(value) in {"head", "tail", "describe", "info"}
    return isinstance(value, (ast.Name, ast.Attribute, ast.Constant, ast.Subscript))


# ---------------------------------------------------------------- words


def _by_words(source: str, magics: tuple[str, ...]) -> SourceReading:
    imports = set(_IMPORT_WORDS.findall(source))
    libraries = _libraries(imports)
    moves = _MOVES_WORDS.search(source) is not None
    known = moves or bool(libraries)
    numbers: dict[str, int] = {}
    for name, value in _NUMBER_WORDS.findall(source):
        _note(name, int(value), numbers)
    return SourceReading(
        read_by="words",
        kind=CellKind.WORKS if source.strip() else CellKind.EMPTY,
        gpu=_use(
            known=known, moves=moves, trains=known and _TRAIN_WORDS.search(source) is not None
        ),
        imports=frozenset(name.partition(".")[0] for name in imports),
        gpu_libraries=libraries,
        magics=magics,
        loops=len(_LOOP_WORDS.findall(source)),
        epochs=numbers.get("epochs"),
        batch_size=numbers.get("batch_size"),
    )
