import gzip

import numpy as np
import pytest

from jupyter_gpu_predict.core.model import CellRun, Outcome
from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.replay.traces import read_trace
from jupyter_gpu_predict.store.trace_store import Store

HEAD = "session,start_min,dur_min,num_gpu\n"


def write(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_events_become_sessions_in_seconds(tmp_path):
    trace = read_trace(write(tmp_path, HEAD + "a,1,2,1\nb,5,1,4\na,10,3,8\n"))
    first, second = trace.sessions
    assert (first.name, second.name) == ("a", "b")
    assert first.start_s.tolist() == [60, 600]
    assert first.work_s.tolist() == [120, 180]
    assert second.gpus.tolist() == [4]
    assert trace.notes == ()


def test_gzip_is_told_by_its_content(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(gzip.compress((HEAD + "a,1,2,1\n").encode()))
    assert read_trace(path).bursts == 1


def test_what_is_not_usable_is_counted_and_left_out(tmp_path):
    text = HEAD + (
        "a,9,1,1\na,5,1,1\na,5,1,1\na,,1,1\na,nan,1,1\na,inf,1,1\na,-1,1,1\na,7,0,1\na,8,4,1\n"
    )
    trace = read_trace(write(tmp_path, text))
    (session,) = trace.sessions
    assert session.start_s.tolist() == [300, 480, 540]
    told = " / ".join(trace.notes)
    assert "3 records without a usable number" in told
    assert "1 records with a negative number" in told
    assert "1 records without duration" in told
    assert "1 duplicate" in told
    assert "1 records begin before" in told
    assert "1 bursts begin before the one before them ended" in told


def test_a_cell_that_does_not_say_whether_it_used_the_gpu_is_counted(tmp_path):
    text = "session,t_start_s,dur_s,gpu_cell\na,0,1,1\na,5,1,\na,9,1,0\n"
    trace = read_trace(write(tmp_path, text))
    assert trace.bursts == 1
    assert "1 records without a usable number" in " / ".join(trace.notes)


def test_a_bad_sample_of_a_pod_is_counted_and_makes_no_memory_of_nothing(tmp_path):
    rows = ["p,0,50,100", "p,57,nan,100", "p,114,50,nan", "p,171,-3,100", "p,228,0,100", "q,0,9,"]
    trace = read_trace(write(tmp_path, "pod,t_s,duty_pct,mem_mib\n" + "\n".join(rows) + "\n"))
    (session,) = trace.sessions
    assert session.work_s.tolist() == [3 * 57]
    assert session.memory_bytes.tolist() == [100 << 20]
    # Two samples that cannot be read, and a burst whose memory nobody knows.
    assert "3 records without a usable number" in " / ".join(trace.notes)


def test_columns_that_are_not_used_are_named(tmp_path):
    trace = read_trace(write(tmp_path, "colour,session,start_min,dur_min,num_gpu\nred,a,1,2,1\n"))
    assert trace.bursts == 1
    assert "colour" in trace.notes[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "a,1,2,1\na,1,two,1\n", ["line 3", "'dur_min'", "'two'"]),
        (HEAD + "a,1,2,1\na,1,2\n", ["line 3", "3 fields, not 4"]),
        ("x,y\n1,2\n", ["line 1", "no known columns"]),
        ("", ["line 1", "no known columns"]),
        (HEAD, ["no usable record"]),
        (HEAD + 'a,"1,2,1\n', ["line 2"]),
        ("session,session,start_min,dur_min,num_gpu\na,a,1,1,1\n", ["'session'", "twice"]),
    ],
)
def test_a_bad_file_is_refused_by_name_line_and_column(tmp_path, text, told):
    path = write(tmp_path, text)
    with pytest.raises(BadInputError) as refused:
        read_trace(path)
    for word in [str(path), *told]:
        assert word in str(refused.value)


def test_the_line_is_right_beyond_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("jupyter_gpu_predict.replay.formats._CHUNK", 3)
    path = write(tmp_path, HEAD + "a,1,1,1\n" * 7 + "a,x,1,1\n")
    with pytest.raises(BadInputError, match=r"line 9, column 'start_min'"):
        read_trace(path)


def test_files_of_other_kinds_are_refused(tmp_path):
    binary = tmp_path / "noise.csv"
    binary.write_bytes(bytes(range(256)) * 10)
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(HEAD.encode() + b"a,1,2,1\n" * 5000)[:-20])
    other = tmp_path / "other.sqlite"
    other.write_bytes(b"SQLite format 3\0" + b"\1" * 100)
    for path, told in (
        (binary, "not a text file"),
        (cut, "cannot be read"),
        (other, "trace store"),
    ):
        with pytest.raises(BadInputError, match=told):
            read_trace(path)
    with pytest.raises(BadInputError, match="No such file"):
        read_trace(tmp_path / "missing.csv")
    with pytest.raises(BadInputError, match="directory"):
        read_trace(tmp_path)


def test_samples_of_pods_become_bursts(tmp_path):
    rows = [(0, 0, 10), (57, 50, 20), (114, 100, 30), (171, 0, 10), (228, 20, 5), (1000, 40, 5)]
    text = "pod,t_s,duty_pct,mem_mib\n" + "".join(f"p,{t},{d},{m}\n" for t, d, m in rows)
    (session,) = read_trace(write(tmp_path, text)).sessions
    assert session.start_s.tolist() == [57, 228, 1000]
    assert session.work_s.tolist() == [114, 57, 57]
    assert session.duty.tolist() == pytest.approx([0.75, 0.2, 0.4])
    assert (session.memory_bytes / 2**20).tolist() == [30, 5, 5]


def test_only_cells_on_a_gpu_count(tmp_path):
    text = "session,t_start_s,dur_s,gpu_cell\ns,0,1,0\ns,2,3.5,1\n"
    (session,) = read_trace(write(tmp_path, text)).sessions
    assert session.start_s.tolist() == [2]
    assert session.work_s.tolist() == [3.5]


def test_a_servers_store_is_read(tmp_path):
    path = tmp_path / "store.sqlite"
    with Store(f"sqlite:///{path}") as store:
        for start_s, peak in ((100.0, 5), (200.0, 7), (300.0, 0)):
            store.add_cell_run(
                CellRun(
                    "k1", "a.ipynb", None, "d", start_s, start_s + 10, peak, peak, "nvml", 0, 4.0,
                    Outcome.OK,
                )
            )  # fmt: skip
    (session,) = read_trace(path).sessions
    assert session.name == "a.ipynb"
    assert session.start_s.tolist() == [100, 200]
    assert session.memory_bytes.tolist() == [5, 7]
    assert np.allclose(session.duty, 0.4)
