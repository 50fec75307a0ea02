"""What is known of calls by their name: which of them leave their arguments as they are."""

from __future__ import annotations

_BUILTINS_WORDS = """
abs all any ascii bin bool bytearray bytes callable chr complex dict divmod enumerate filter
float format frozenset hasattr hash hex int isinstance issubclass iter len list map max min oct
ord pow print range repr reversed round set slice sorted str sum super tuple type zip object
Exception ValueError TypeError RuntimeError KeyError
"""
_BUILTINS = frozenset(_BUILTINS_WORDS.split())
_MODULES_WORDS = """
array collections copy dataclasses datetime decimal fractions functools itertools json math
numpy operator pandas re statistics string textwrap threading torch types typing
"""
_MODULES = frozenset(_MODULES_WORDS.split())
_CHANGING_WORDS = """
copyto fill_diagonal place put put_along_axis putmask shuffle setitem delitem iadd isub imul
setattr getattr save savez savetxt from_numpy reduce partial dump load
"""
_CHANGING = frozenset(_CHANGING_WORDS.split())
_READING_WORDS = """
abs all any argmax argmin argsort astype copy corr count cumsum describe detach dot endswith
equals get groupby head index isin isna isnull item items join keys max mean median merge min
nunique numpy quantile reshape round size split startswith std strip sum tail tolist to_numpy
transpose unique value_counts values var
"""
_READING = frozenset(_READING_WORDS.split())
_VOLATILE_WORDS = """
time.time time.time_ns time.monotonic time.monotonic_ns time.perf_counter time.perf_counter_ns
time.process_time time.localtime time.gmtime time.ctime time.strftime datetime.datetime.now
datetime.datetime.today datetime.datetime.utcnow datetime.date.today pandas.Timestamp.now
pandas.Timestamp.today uuid.uuid1 uuid.uuid4 os.urandom os.getpid os.times os.getenv
os.environ.get secrets.token_hex secrets.token_bytes secrets.randbelow secrets.token_urlsafe
secrets.choice secrets.randbits random.SystemRandom numpy.random.default_rng
numpy.random.RandomState random.Random threading.get_ident
"""
_VOLATILE = frozenset(_VOLATILE_WORDS.split())
_SEEDED = frozenset({"numpy.random.default_rng", "numpy.random.RandomState", "random.Random"})


def only_reads(dotted: str) -> bool:
    """Whether the function of that full name leaves arguments that are plain data unchanged."""
    package, _, rest = dotted.partition(".")
    if package == "builtins":
        return rest in _BUILTINS
    last = rest.rpartition(".")[2]
    return (
        package in _MODULES
        and last not in _CHANGING
        and not last.endswith("_")
        and not rest.startswith("random.")
    )


def reads_itself(method: str) -> bool:
    """Whether a method of that name leaves an array, a frame or a builtin container unchanged."""
    return method in _READING


def volatile(dotted: str, *, given: bool) -> bool:
    """Whether the function gives another answer each time; `given`: it was given arguments."""
    return dotted in _VOLATILE and not (given and dotted in _SEEDED)
