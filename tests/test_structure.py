"""The rooms of the house: what may include what, and what a new cell costs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import adl_kernels
from adl_kernels import _build_info, reference
from adl_kernels._cells import CELLS
from build_backend.compile import kernel_sources, object_name

pytestmark = pytest.mark.cpu_only

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
TORCH = re.compile(r'#include\s*[<"](torch|ATen|c10)/')


def includes(path: Path) -> list[str]:
    return re.findall(r'#include\s*[<"]([^>"]+)[>"]', path.read_text())


def sources(folder: str) -> list[Path]:
    return sorted(
        p for p in (CSRC / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")
    )


def test_only_ops_includes_torch():
    for path in [*sources("cells"), *sources("cpu"), *sources("cuda"), CSRC / "recurrent.h"]:
        assert not TORCH.search(path.read_text()), f"{path} includes torch"


def test_cells_include_nothing_but_their_common_header():
    for path in sources("cells"):
        if path.name != "cells.h":
            assert set(includes(path)) <= {"cells/number.h"}, path


def test_torch_extension_is_never_included():
    """It takes 16 seconds to compile."""
    assert not any("torch/extension.h" in includes(path) for path in sources("."))


def test_every_cell_has_a_definition_and_ops():
    assert set(CELLS) == set(reference.STEPS)
    for cell in CELLS.values():
        assert cell.op and cell.forward_op and cell.backward_op


@pytest.mark.parametrize("isa", _build_info.ISAS)
def test_objects_of_an_instruction_set_share_no_symbols(isa):
    """A weak symbol compiled for AVX-512 could be linked in for everyone."""
    folder = ROOT / "build" / f"objects-{sys.implementation.cache_tag}"
    for source in kernel_sources(ROOT, isa):
        path = folder / object_name(ROOT, source, isa)
        listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True)
        assert re.search(rf" T .* adl::isa_{isa}::(kernels<|rounding)", listing.stdout), path
        weak = [line for line in listing.stdout.splitlines() if re.search(r" [WV] ", line)]
        assert not weak, f"{path}: {weak[:3]}"


COUPLED = """\
#pragma once
#include "cells/number.h"
namespace adl {
struct Coupled {  // an LSTM with f = 1 - i
  static constexpr const char* kName = "coupled";
  static constexpr int kGates = 3, kPre = 3;  // i g o
  static constexpr int kIh[] = {0, 1, 2}, kHh[] = {0, 1, 2};
  static constexpr bool kHasC = true, kSavesGates = true;
  template <class V>
  ADL_CELL void forward(V* pre, V& h, V& c) {
    const V i = sigmoid(pre[0]), g = tanh(pre[1]), o = sigmoid(pre[2]);
    c = c + i * (g - c);
    h = o * tanh(c);
    pre[0] = i, pre[1] = g, pre[2] = o;
  }
  template <class V>
  ADL_CELL void backward(V* gates, V, V, V c_prev, V c, V& dh, V& dc) {
    const V i = gates[0], g = gates[1], o = gates[2], tanh_c = tanh(c);
    dc = dc + dh * o * (V(1) - tanh_c * tanh_c);
    gates[0] = dc * (g - c_prev) * i * (V(1) - i);
    gates[1] = dc * i * (V(1) - g * g);
    gates[2] = dh * tanh_c * o * (V(1) - o);
    dc = dc * (V(1) - i);
    dh = V(0);
  }
};
}
"""

DEFINITION = """

def coupled_step(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, g, o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(3, 1)
    i = torch.sigmoid(i)
    c = (1 - i) * c + i * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


STEPS["coupled"] = coupled_step
"""

CHECK = """
import torch
from adl_kernels import selftest
from adl_kernels._cells import CELLS
cell = CELLS["coupled"]
args = [torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in [(3, 2, 4), (1, 2, 5), (1, 2, 5), (15, 4), (15, 5), (15,), (15,)]]
run = lambda x, h, c, *w: tuple(cell.op(x, [h, c], list(w), None))
assert torch.autograd.gradcheck(run, args) and torch.autograd.gradgradcheck(run, args)
assert selftest.main([]) == 0
"""


def test_a_cell_is_one_header_and_one_row(tmp_path):
    """Follows the recipe of CONTRIBUTING.md in a copy of the project: builds it, checks it."""
    for name in ("csrc", "build_backend", "adl_kernels"):
        skip = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.py")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)

    (tmp_path / "csrc/cells/coupled.h").write_text(COUPLED)
    table = tmp_path / "csrc/cells/cells.h"
    text = table.read_text().replace("_(RnnRelu)", "_(RnnRelu) _(Coupled)")
    table.write_text(text.replace("#pragma once", '#pragma once\n#include "cells/coupled.h"'))
    definitions = tmp_path / "adl_kernels/reference.py"
    definitions.write_text(definitions.read_text() + DEFINITION)

    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    for command in (build, [sys.executable, "-c", CHECK]):
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "coupled, float32" in run.stdout
    assert "coupled" not in CELLS and adl_kernels.__file__ != str(tmp_path)
