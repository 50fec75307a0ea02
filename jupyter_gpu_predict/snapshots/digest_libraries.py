"""The state of numpy, torch and pandas objects for `digest`."""

from __future__ import annotations

from typing import Any, NamedTuple

from .buffers import loaded
from .digest_memory import array_digest, plain_digest, tensor_digest
from .types_widgets import is_traits, is_widget


class LibraryNode(NamedTuple):
    """Head and children of a library's object."""

    head: bytes
    children: list[Any]


def library_node(obj: Any) -> LibraryNode | str | None:
    """Return the node of `obj`, the name of its type if it is opaque, ``None`` if unknown here."""
    for module, describe in _LIBRARIES:
        library = loaded(module)
        # A half imported library may lack what is asked for.
        if library is not None and (found := describe(library, obj)) is not None:
            return found
    return None


def _numpy(numpy: Any, obj: Any) -> LibraryNode | None:
    kind = type(obj)
    if isinstance(obj, numpy.ma.MaskedArray):
        fill = obj._fill_value  # the property would set it
        fill = numpy.asarray(numpy.ma.default_fill_value(obj) if fill is None else fill, obj.dtype)
        return LibraryNode(b"masked", [kind, obj.data, numpy.ma.getmaskarray(obj), fill])
    if isinstance(obj, numpy.ndarray):
        head = f"array {kind.__qualname__} {obj.shape}".encode()
        if obj.dtype.hasobject and obj.dtype.names is None:
            return LibraryNode(head, [obj.ravel().tolist()])
        if obj.dtype.names is not None:
            # Padding between fields holds whatever was in memory before.
            fields = [part for name in obj.dtype.names for part in (name, numpy.asarray(obj[name]))]
            return LibraryNode(head, [obj.dtype, *fields])
        return LibraryNode(head + obj.dtype.str.encode() + array_digest(numpy, obj), [])
    if isinstance(obj, numpy.dtype):
        return LibraryNode(f"dtype {obj.descr if obj.names is None else obj}".encode(), [])
    if isinstance(obj, numpy.generic) and not obj.dtype.hasobject:
        return LibraryNode(f"scalar {obj.dtype.str}".encode() + obj.tobytes(), [])
    if isinstance(obj, numpy.ufunc):
        return LibraryNode(f"ufunc {obj.__name__}".encode(), [])
    if isinstance(obj, numpy.random.RandomState):
        return LibraryNode(b"RandomState", [obj.get_state(legacy=False)])
    if isinstance(obj, numpy.random.BitGenerator):
        return LibraryNode(b"BitGenerator", [kind, obj.state])
    if isinstance(obj, numpy.random.Generator):
        return LibraryNode(b"Generator", [obj.bit_generator])
    return None


def _torch(torch: Any, obj: Any) -> LibraryNode | str | None:
    kind = type(obj)
    if isinstance(obj, torch.Tensor):
        children: list[Any] = [kind, bool(obj.requires_grad)]
        if obj.is_leaf and obj.grad is not None:
            children.append(obj.grad)
        value = obj.detach()
        if value.layout in (torch.sparse_coo, torch.sparse_csr) or value.is_quantized:
            return LibraryNode(b"tensor", [*children, *value.__reduce_ex__(4)[1]])
        if value.device.type == "meta":
            return LibraryNode(f"meta {value.dtype} {tuple(value.shape)}".encode(), children)
        head = f"tensor {value.dtype} {tuple(value.shape)}".encode()
        return LibraryNode(head + tensor_digest(value), children)
    if isinstance(obj, torch.UntypedStorage):
        raw = torch.empty(0, dtype=torch.uint8, device=obj.device).set_(obj)
        return LibraryNode(b"storage" + tensor_digest(raw), [])
    if isinstance(obj, torch.storage.TypedStorage):
        return LibraryNode(f"storage {obj.dtype}".encode(), [obj._untyped_storage])
    if isinstance(obj, torch.Generator):
        return LibraryNode(f"generator {obj.device}".encode(), [obj.get_state()])
    if isinstance(obj, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return LibraryNode(f"{kind.__name__} {obj}".encode(), [])
    return None


def _pandas(pandas: Any, obj: Any) -> LibraryNode | None:
    kind = type(obj)
    name = kind.__qualname__.encode()
    if isinstance(obj, pandas.DataFrame):
        columns = [obj.iloc[:, i].array for i in range(obj.shape[1])]
        return LibraryNode(name, [kind, obj.columns, obj.index, dict(obj.attrs), *columns])
    if isinstance(obj, pandas.Series):
        return LibraryNode(name, [kind, obj.name, obj.index, dict(obj.attrs), obj.array])
    if isinstance(obj, pandas.MultiIndex):
        names, levels, codes = list(obj.names), list(obj.levels), list(obj.codes)
        return LibraryNode(name, [names, levels, codes])
    if isinstance(obj, pandas.RangeIndex):
        return LibraryNode(name, [obj.name, obj.start, obj.stop, obj.step])
    if isinstance(obj, pandas.Index):
        return LibraryNode(name, [obj.name, getattr(obj, "freqstr", None), obj.array])
    if isinstance(obj, pandas.Categorical):
        return LibraryNode(name, [obj.codes, obj.categories, bool(obj.ordered)])
    if isinstance(obj, pandas.api.extensions.ExtensionArray):
        return LibraryNode(name, [str(obj.dtype), *_extension_values(obj)])
    if obj is pandas.NA or obj is pandas.NaT:
        return LibraryNode(b"missing " + name, [])
    return None


def _extension_values(array: Any) -> list[Any]:
    if (values := getattr(array, "_ndarray", None)) is not None:
        return [values]
    if (mask := getattr(array, "_mask", None)) is not None:
        return [array._data, mask]
    return [array.to_numpy(dtype=object)]


def _matplotlib(artist: Any, obj: Any) -> LibraryNode | None:
    """Describe a figure by what it shows; its callbacks and caches differ from run to run."""
    if not isinstance(obj, artist.Artist):
        return None
    kind = type(obj)
    names = ("get_text", "get_title", "get_xlabel", "get_ylabel", "get_array", "get_color")
    readers = [getattr(obj, name, None) for name in names]
    shown = [read() for read in readers if callable(read)]
    given = [getattr(obj, name, None) for name in ("_xorig", "_yorig")]
    # An axis makes its ticks when asked for its children.
    axis = isinstance(getattr(obj, "label", None), artist.Artist)
    children = [obj.label] if axis else list(obj.get_children())
    head = f"artist {obj.get_label()!s} {obj.get_visible()}".encode()
    return LibraryNode(head, [kind, shown, given, children])


def _traitlets(module: Any, obj: Any) -> LibraryNode | None:
    """Describe an object of traitlets by its values; a widget's comm belongs to its kernel."""
    if not is_traits(type(obj)):
        return None
    values = {k: v for k, v in obj._trait_values.items() if k != "comm"}
    rest = {}
    if not is_widget(type(obj)):
        rest = {k: v for k, v in vars(obj).items() if not k.startswith("_")}
    return LibraryNode(b"traits", [type(obj), sorted(values.items()), sorted(rest.items())])


def _arrow(module: Any, obj: Any) -> LibraryNode | None:
    if isinstance(obj, module.Buffer) and obj.is_cpu:
        return LibraryNode(b"buffer" + plain_digest(obj), [])
    return None


def _ipython(module: Any, obj: Any) -> LibraryNode | None:
    return LibraryNode(b"shell", []) if isinstance(obj, module.InteractiveShell) else None


_LIBRARIES = (
    ("numpy", _numpy),
    ("torch", _torch),
    ("pandas", _pandas),
    ("pyarrow", _arrow),
    ("traitlets", _traitlets),
    ("matplotlib.artist", _matplotlib),
    ("IPython.core.interactiveshell", _ipython),
)
