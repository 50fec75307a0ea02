"""ipywidgets and other objects of traitlets: values and the user's own handlers.

A widget lives in two places. The one in the browser is made again by opening a comm for the
restored one, under its former id where that is free, so that a view that is shown again, or still
stands in the notebook when the page is loaded anew, shows the same values.
"""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any

from .buffers import loaded

if TYPE_CHECKING:
    from .pickling import SnapshotPickler

_PROCESS_OWN = frozenset({"_lock", "_states_to_send", "_property_lock", "_holding_sync"})


def is_traits(kind: type) -> bool:
    """Tell whether a class leaves pickling to ``traitlets.HasTraits``, which drops handlers."""
    traitlets = loaded("traitlets")
    if traitlets is None or not issubclass(kind, traitlets.HasTraits):
        return False
    own, plain = kind, traitlets.HasTraits
    names = ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__")
    return all(getattr(own, name) is getattr(plain, name) for name in names)


def is_widget(kind: type) -> bool:
    """Tell whether a class is one of ipywidgets'."""
    library = loaded("ipywidgets.widgets.widget")
    return library is not None and issubclass(kind, library.Widget)


def reduce_traits(pickler: SnapshotPickler, obj: Any) -> Any:
    """Reduce an object of traitlets to its values and the handlers that were put on it."""
    handlers = loaded("traitlets").EventHandler
    notifiers = {
        name: {kind: kept for kind, found in kinds.items()
               if (kept := [f for f in found if not isinstance(f, handlers)])}
        for name, kinds in obj._trait_notifiers.items()
    }  # fmt: skip
    notifiers = {name: kinds for name, kinds in notifiers.items() if kinds}
    state = obj.__getstate__()
    if is_widget(type(obj)):
        if obj.comm is None:
            pickler.refuse(obj, "this widget is closed; make it again")
        state["_trait_values"].pop("comm", None)
        state["_model_id"] = obj.model_id
        state = {k: v for k, v in state.items() if k not in _PROCESS_OWN}
    fill = RebuildTraits.fill_traits
    return copyreg.__newobj__, (type(obj),), (state, notifiers), None, None, fill  # type: ignore[attr-defined]


class RebuildTraits:
    """What a stream calls to make objects of traitlets again; part of `Rebuild`."""

    def fill_traits(self, obj: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Give an object its values and handlers; a widget also gets its half in the browser."""
        own, notifiers = state
        if is_widget(type(obj)):
            import comm

            if own["_model_id"] in comm.get_comm_manager().comms:
                own["_model_id"] = None
            fresh = {k: v for k, v in vars(obj).items() if k in _PROCESS_OWN}
            obj.__setstate__({**own, **fresh, "_trait_values": {**own["_trait_values"]}})
        else:
            obj.__setstate__(own)
        for name, kinds in notifiers.items():
            for kind, found in kinds.items():
                for handler in found:
                    obj._add_notifiers(handler, name, kind)
        if is_widget(type(obj)):
            obj.open()
