"""`python programs.py FOLDER`: builds the programs that need no torch, after the extension.

They share the extension's kernels, as it has compiled them, and take the CUDA runtime along.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_backend import choices  # noqa: E402 (needs the path above)
from build_backend.build_ext import make_plan, objects_folder  # noqa: E402
from build_backend.compile import Object, Plan, compile_objects  # noqa: E402
from build_backend.torch_info import find_torch  # noqa: E402

# The room whose kernels each is linked with.
KERNELS = {
    "wrappers": None,
    "driver": "recurrent",
    "team_driver": "recurrent",
    "conv_driver": "depthwise",
}


def sources() -> list[Path]:
    calibrations = sorted(ROOT.glob("bench/gpu/calibrate_*.cu"))
    return [*(ROOT / f"tests/cuda_on_cpu/{name}.cu" for name in KERNELS), *calibrations]


def build(plan: Plan, folder: Path) -> None:
    """Compiles what the extension has not, and links all."""
    if plan.cuda_home is None:
        raise SystemExit("the programs need a CUDA toolkit and a CUDA build of torch")
    flags = plan.cuda_flags()
    mains = [Object("nvcc", source, f"{source.stem}.o", flags) for source in sources()]
    built = compile_objects(mains, ROOT / "build" / "objects-programs", plan.cuda_home)
    folder.mkdir(parents=True, exist_ok=True)

    def link(main: str) -> None:
        name = Path(main).stem
        kernels = [
            str(path)
            for path in sorted((objects_folder() / "cuda").glob(f"{KERNELS.get(name)}/cuda/*.cu.o"))
        ]
        command = [str(plan.cuda_home / "bin/nvcc"), "-cudart", "static", "-Xlinker", "-s"]
        subprocess.run([*command, main, *kernels, "-o", str(folder / name)], check=True)

    with ThreadPoolExecutor(choices.jobs_here()) as pool:
        list(pool.map(link, built))


def main() -> None:
    torch = find_torch()
    if torch is None:
        raise SystemExit(f"{sys.executable} has no torch")
    os.environ.setdefault("ADL_CUDA", "1")
    build(make_plan(torch), Path(sys.argv[1]))


if __name__ == "__main__":
    main()
