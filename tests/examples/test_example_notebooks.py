from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

STORAGE_MIB = """
import gc, torch
held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for t in gc.get_objects() if issubclass(type(t), torch.Tensor)}
print(sum(held.values()) // 2**20)
"""


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_a_notebook_is_valid_and_holds_no_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.cells[0].cell_type == "markdown"
    assert 9 <= len(code_cells(notebook)) <= 14
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


def test_a_notebook_takes_a_gpu_where_there_is_one(path):
    source = "\n".join(cell.source for cell in code_cells(read(path)))
    assert 'device = "cuda" if torch.cuda.is_available() else "cpu"' in source
    assert ".cuda()" not in source
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert not [call for call in calls if ast.unparse(call.func) in {"time.time", "id", "hash"}]


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "pandas", "sklearn")),
    reason="needs torch, pandas and scikit-learn",
)
def test_a_notebook_runs_through_and_fills_half_a_small_gpu(path, tmp_path, monkeypatch):
    # On a machine with a GPU as well: the memory is looked for on the CPU.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    printed: list[str] = []

    def collect(message):
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    try:
        client.wait_for_ready(timeout=60)
        for cell in code_cells(read(path)):
            reply = client.execute_interactive(cell.source, timeout=90, output_hook=collect)
            content = reply["content"]
            assert content["status"] == "ok", f"{cell.id}: {content['ename']}: {content['evalue']}"
        client.execute_interactive(STORAGE_MIB, timeout=30, output_hook=collect)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
    # Gradients that Python has not read are not counted here.
    assert 180 <= int(printed[-1]) <= 300
    assert not list(tmp_path.iterdir())
