"""What is kept of driver checkpoints and of a host's speeds, also in a store of an older server."""

from __future__ import annotations

from pathlib import Path

from alembic import command

from jupyter_gpu_predict.core.migration.cost import Bandwidths, Transfer, learn
from jupyter_gpu_predict.core.model import GIB
from jupyter_gpu_predict.store import migrate
from jupyter_gpu_predict.store.trace_store import Store


def test_checkpoints_are_kept_replaced_and_forgotten_by_kernel(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    with Store(url) as store:
        store.save_checkpoint("a", {"pids": [1]})
        store.save_checkpoint("b", {"pids": []})
        store.save_checkpoint("a", {"pids": [1, 2]})
    with Store(url) as store:
        assert store.checkpoints() == {"a": {"pids": [1, 2]}, "b": {"pids": []}}
        store.forget_checkpoint("a")
        store.forget_checkpoint("never-there")
        assert list(store.checkpoints()) == ["b"]


def test_speeds_are_kept_by_host(tmp_path: Path) -> None:
    here = learn(Bandwidths(), Transfer.CHECKPOINT, 4 * GIB, 2.0)
    with Store(f"sqlite:///{tmp_path / 'state.db'}") as store:
        store.save_bandwidths("here", here.to_json())
        store.save_bandwidths("there", Bandwidths().to_json())
        assert Bandwidths.from_json(store.bandwidths("here")) == here
        assert store.bandwidths("elsewhere") == {}


def test_a_store_of_the_first_schema_is_brought_up_with_what_is_in_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    with Store(url) as store:
        store.add_event(1.0, "old", {"n": 1})

        def back(connection: object) -> None:
            config = migrate._config()
            config.attributes["connection"] = connection
            command.stamp(config, "0001")

        store.database.write(back)
        for table in ("checkpoints", "bandwidths"):
            store.database.write(lambda db, table=table: db.exec_driver_sql(f"DROP TABLE {table}"))
    with Store(url) as store:
        assert store.events() == [{"t_s": 1.0, "kind": "old", "n": 1}]
        store.save_checkpoint("a", {})
        assert store.checkpoints() == {"a": {}}
