"""What this machine is, as torch and adl_kernels know it; fails where they cannot be imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess


def main() -> None:
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.free,clocks.max.sm,power.limit"
        subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], check=False, timeout=20)
    import torch

    from adl_kernels import info

    info.main()
    found = {
        "gpu": None,
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "archs": dict(info.facts())["CUDA architectures"],
    }
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "free_GiB": round(torch.cuda.mem_get_info()[0] / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
