"""The rooms of the house: what may include what, and what a new cell costs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import adl_kernels
from adl_kernels import _build_info
from adl_kernels.recurrent import reference
from adl_kernels.recurrent.cell_facts import CELLS
from build_backend.compile import kernel_sources, object_name

pytestmark = pytest.mark.cpu_only

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
ROOMS = {path.name for path in CSRC.iterdir() if path.is_dir()}
OPERATIONS = sorted(ROOMS - {"common"})
TORCH = re.compile(r"(torch|ATen|c10)/")


def includes(path: Path) -> list[str]:
    return re.findall(r'#include\s*[<"]([^>"]+)[>"]', path.read_text())


def sources(folder: str) -> list[Path]:
    found = sorted(
        p for p in (CSRC / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")
    )
    assert found, f"there is nothing in csrc/{folder}"
    return found


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_includes_no_other_operation(room):
    others = tuple(f"{name}/" for name in OPERATIONS if name != room)
    for path in sources(room):
        assert not [name for name in includes(path) if name.startswith(others)], path


def test_kernels_and_cells_never_include_torch():
    folders = [p for name in ("cpu", "cuda", "cells") for p in CSRC.glob(f"*/{name}")]
    assert len(folders) > 5
    shared = [path for path in sources("recurrent") if path.name == "params.h"]
    for path in [p for f in folders for p in sources(str(f.relative_to(CSRC)))] + shared:
        assert not [name for name in includes(path) if TORCH.match(name)], path


def test_cells_include_nothing_but_their_common_header():
    for path in sources("recurrent/cells"):
        if path.name != "cells.h":
            assert set(includes(path)) <= {"recurrent/cells/number.h"}, path


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
        assert re.search(rf" T .*adl::isa_{isa}::", listing.stdout), path
        weak = [line for line in listing.stdout.splitlines() if re.search(r" [WV] ", line)]
        assert not weak, f"{path}: {weak[:3]}"


MINIMAL = """\
#pragma once
#include "recurrent/cells/number.h"
namespace adl {
struct Minimal {  // the minimal gated unit (Zhou et al. 2016), its gate applied after the product
  static constexpr const char* kName = "minimal";
  static constexpr int kGates = 2, kPre = 3;  // f n; held n_x f n_h
  static constexpr int kIh[] = {1, 0}, kHh[] = {1, 2};
  static constexpr int kPeepholes = 0;
  static constexpr bool kHasC = false, kSavesGates = true, kResetsBefore = false;
  template <class V>
  ADL_CELL void forward(V* pre, V& h, const Choice&) {
    const V f = sigmoid(pre[1]), n = tanh(pre[0] + f * pre[2]);
    h = h + f * (n - h);
    pre[0] = n, pre[1] = f;
  }
  template <class V>
  ADL_CELL void backward(V* gates, V h_prev, V, V& dh, const Choice&) {
    const V n = gates[0], f = gates[1], n_h = gates[2];
    const V dn = dh * f * (V(1) - n * n);
    gates[0] = dn;
    gates[1] = (dn * n_h + dh * (n - h_prev)) * f * (V(1) - f);
    gates[2] = dn * f;
    dh = dh * (V(1) - f);
  }
};
}
"""

DEFINITION = """

def minimal_step(x, h, state, w, how):
    gx, gh = _products(x, h, w)
    (f_x, n_x), (f_h, n_h) = gx.chunk(2, 1), gh.chunk(2, 1)
    f = torch.sigmoid(f_x + f_h)
    return ((1 - f) * state[0] + f * torch.tanh(n_x + f * n_h),)


STEPS["minimal"] = minimal_step
"""

CHECK = """
import torch
from adl_kernels import selftest
from adl_kernels.recurrent.cell_facts import CELLS
from adl_kernels.recurrent.options import LayerOptions
cell = CELLS["minimal"]
sizes = [(3, 2, 4), (1, 2, 5), (10, 4), (10, 5), (10,), (10,), (10,), (10,)]
args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in sizes]
reset = torch.tensor([[False, True], [True, False], [False, False]])
extras = LayerOptions(reset=reset, zoneout=(0.25,), layer_norm=True)
run = lambda x, h, *w: tuple(cell.op(x, [h], list(w), *extras))
assert torch.autograd.gradcheck(run, args) and torch.autograd.gradgradcheck(run, args)
assert selftest.main([]) == 0
"""


OPTION = '  _(Int, probe, 7, "nothing yet")'


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with a cell and an option more, by the recipes of CONTRIBUTING.md."""
    root = tmp_path_factory.mktemp("extended")
    for name in ("csrc", "build_backend", "adl_kernels"):
        skip = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.py")
        shutil.copytree(ROOT / name, root / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)

    (root / "csrc/recurrent/cells/minimal.h").write_text(MINIMAL)
    table = root / "csrc/recurrent/cells/cells.h"
    text = table.read_text().replace("_(RnnRelu)", "_(RnnRelu) _(Minimal)")
    table.write_text(
        text.replace("#pragma once", '#pragma once\n#include "recurrent/cells/minimal.h"')
    )
    definitions = root / "adl_kernels/recurrent/reference.py"
    definitions.write_text(definitions.read_text() + DEFINITION)

    options = root / "csrc/recurrent/options.h"
    lines = options.read_text().splitlines()
    last = next(k for k, line in enumerate(lines) if line.startswith("  _(Int, frozen"))
    lines[last : last + 1] = [lines[last] + " \\", OPTION]
    options.write_text("\n".join(lines) + "\n")

    run_in(root, "setup.py", "-q", "build_ext", "--inplace")
    return root


def run_in(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


@pytest.mark.slow
def test_a_cell_is_one_header_and_one_row(extended):
    assert "minimal, float32" in run_in(extended, "-c", CHECK)
    assert "minimal" not in CELLS and adl_kernels.__file__ != str(extended)


@pytest.mark.slow
def test_an_option_is_one_row(extended):
    """It reaches schemas, defaults, the Python tuple and its table, and a module's short way."""
    check = """
import torch, adl_kernels
from adl_kernels.recurrent import options
for name in ("lstm", "gru_forward", "lstm_backward"):
    schema = getattr(torch.ops.adl_kernels, name).default._schema
    assert "int probe" in str(schema), schema
assert "int probe=7" in str(torch.ops.adl_kernels.lstm.default._schema)
assert options.PLAIN.probe == 7 and options.LayerOptions._fields[-1] == "probe"
assert "| `probe` | `int` | nothing yet |" in options.table()
layer, x = adl_kernels.LSTM(3, 2, peephole=True), torch.randn(4, 1, 3, requires_grad=True)
layer(x)[0].sum().backward()
weights = [getattr(layer, name) for name in layer._flat_weights_names]
h = torch.zeros(1, 1, 2)
torch.ops.adl_kernels.lstm_general(x, [h, h], weights, peephole=True, probe=3)[0].sum().backward()
"""
    run_in(extended, "-c", check)
