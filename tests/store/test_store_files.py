from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event

from jupyter_gpu_predict.errors import StoreError
from jupyter_gpu_predict.store import migrate, schema
from jupyter_gpu_predict.store.database import Database
from jupyter_gpu_predict.store.doctor import check_store
from jupyter_gpu_predict.store.trace_store import Store

ADD_EVENTS = """
import sys
from jupyter_gpu_predict.store.trace_store import Store
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store(url) as store:
    print("open", flush=True)
    sys.stdin.readline()
    for number in range(count):
        epoch = store.next_epoch()
        store.add_event(float(number), "mark", {"kernel_id": name, "epoch": epoch})
"""

HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def start():
    """Start Python processes and end them, whatever becomes of the test."""
    with contextlib.ExitStack() as stack:

        def run(code: str, *args: str) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", code, *args],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "50%(here)s" / "store.sqlite"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def test_migrations_make_exactly_the_tables_the_code_uses(url):
    database = Database(url)
    options = {"version_table": schema.VERSION_TABLE, "compare_server_default": True}
    found = database.read(
        lambda db: compare_metadata(MigrationContext.configure(db, opts=options), schema.metadata)
    )
    assert found == []
    assert database.read(migrate.revision) == schema.HEAD
    database.close()


def test_the_newest_revision_is_the_one_the_code_names():
    assert ScriptDirectory.from_config(migrate._config()).get_heads() == [schema.HEAD]


def test_processes_that_open_a_new_store_at_once_all_write_to_it(url, start):
    count = 25
    # All of them create and migrate at once: none waits for another to be ready.
    others = [start(ADD_EVENTS, url, f"k{i}", str(count)) for i in range(4)]
    for process in others:
        assert process.stdout.readline() == "open\n"
    for process in others:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(timeout=60) for process in others] == [0] * 4
    with Store(url) as store:
        marks = store.events(kinds=["mark"])
        assert sorted(mark["epoch"] for mark in marks) == list(range(1, 4 * count + 1))
        for name in ("k0", "k1", "k2", "k3"):
            epochs = [mark["epoch"] for mark in marks if mark["kernel_id"] == name]
            assert len(epochs) == count
            assert epochs == sorted(epochs)


def test_a_writer_killed_in_the_middle_leaves_whole_rows(url, start):
    process = start(ADD_EVENTS, url, "k0", "1000000")
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    with Store(url) as store:
        while not store.events(limit=20)[10:]:
            assert process.poll() is None
        process.kill()
        process.communicate()
        marks = store.events(limit=1_000_000)
        assert [mark["epoch"] for mark in marks] == list(range(1, len(marks) + 1))
        assert store.next_epoch() > len(marks)
    assert check_store(url)[0]


def test_a_store_locked_for_too_long_names_the_file(url, path, start):
    with Store(url, lock_timeout_s=0.2) as store:
        holder = start(HOLD_LOCK, str(path))
        holder.stdout.readline()
        with pytest.raises(StoreError, match=r"store\.sqlite was locked .*`fuser "):
            store.next_epoch()
        assert store.events() == []
        holder.communicate("\n")
        assert store.next_epoch() == 1


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"?" * 5000]
)
def test_a_damaged_file_is_named_and_kept(url, path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.sqlite is damaged .*move it aside"):
        Store(url)
    assert path.read_bytes() == content
    good, detail, remedy = check_store(url)
    assert not good
    assert str(path) in detail
    assert "move it aside" in remedy


def test_damage_inside_the_file_is_found(url, path):
    with Store(url) as store:
        for number in range(200):
            store.add_event(float(number), "mark", {"text": "x" * 200})
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    good, detail, remedy = check_store(url)
    assert not good
    assert str(path) in detail
    assert "aside" in remedy
    with pytest.raises(StoreError, match="damaged"), Store(url) as store:
        store.events()


def test_a_store_of_a_newer_schema_is_left_alone(url, path):
    Store(url).close()
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"schema 9999 is newer than .* Upgrade the package"):
        Store(url)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_left_alone(url, path):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE events (what TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="tables called events that this package did not make"):
        Store(url)
    assert path.read_bytes() == before


def test_a_failed_migration_leaves_nothing_behind(url, path, monkeypatch):
    def fail(*_args):
        raise RuntimeError("power cut")

    monkeypatch.setattr("alembic.operations.Operations.bulk_insert", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        Store(url)
    monkeypatch.undo()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()
    with Store(url) as store:
        assert store.next_epoch() == 1


def test_a_full_disk_keeps_what_was_stored(url, path):
    def small_disk(connection, _record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 5}")

    def fill(store):
        for number in range(100):
            store.add_event(2.0, "filler", {"text": "x" * 3000, "number": number})

    with Store(url) as store:
        store.add_event(1.0, "mark", {})
    event.listen(Engine, "connect", small_disk)
    try:
        with Store(url) as store:
            with pytest.raises(StoreError, match=r"store\.sqlite has no room.*Free some space"):
                fill(store)
            kept = store.events(kinds=["filler"])
            assert [e["number"] for e in kept] == list(range(len(kept)))
            assert store.events(kinds=["mark"]) == [{"t_s": 1.0, "kind": "mark"}]
    finally:
        event.remove(Engine, "connect", small_disk)


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    url = f"sqlite:///{tmp_path}/file/store.sqlite"
    with pytest.raises(StoreError, match=r"file/store\.sqlite cannot be made"):
        Store(url)
    good, detail, remedy = check_store(url)
    assert not good
    assert "is not a folder" in detail
    assert remedy


def test_a_folder_and_a_file_that_can_only_be_read_are_named():
    # Its own folder, and as another user where this one may write everywhere.
    code = """
import os, sys
from pathlib import Path
import alembic.command, sqlalchemy.dialects.sqlite
from jupyter_gpu_predict.errors import StoreError
from jupyter_gpu_predict.store.doctor import check_store
from jupyter_gpu_predict.store.trace_store import Store
folder = Path(sys.argv[1])
with Store(f"sqlite:///{folder}/old.sqlite") as store:
    store.add_event(1.0, "mark", {})
(folder / "old.sqlite").chmod(0o444)
folder.chmod(0o555)
if os.geteuid() == 0:
    os.seteuid(65534)
for name in ("new", "old"):
    url = f"sqlite:///{folder}/{name}.sqlite"
    print(check_store(url))
    try:
        with Store(url) as store:
            store.next_epoch()
    except StoreError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, check=False
        )
        os.chmod(folder, 0o700)
    assert done.returncode == 0, done.stderr
    new_check, new, old_check, old = done.stdout.splitlines()
    assert new_check.startswith("(False, ")
    assert new.startswith(f"The store {folder}/new.sqlite cannot be made")
    assert old_check.startswith("(False, ")
    assert old.startswith(f"The store {folder}/old.sqlite")
    assert "Make" in old


def test_doctor_says_that_a_store_works_or_will_be_made(url, path):
    assert check_store(url) == (True, f"{path} does not exist yet and will be made", "")
    assert not path.exists()
    Store(url).close()
    assert check_store(url) == (True, f"{path} can be read and written, journal wal", "")
    good, detail, _ = check_store("sqlite://")
    assert not good
    assert "names no file" in detail
