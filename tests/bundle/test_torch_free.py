"""What cannot load tensors cannot be attacked through them: no tensor framework is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import sys
from pathlib import Path
from moiety.bundle import anchors, orders, pack, signing, verify_bundle
home, out = Path(sys.argv[1]), Path(sys.argv[2])
anchors.verify_anchor(home / "anchor")
signing.new_key(out / "key")
pack(home / "clinic.run", out / "key.pem", out / "new.expert")
facts = anchors.open_facts(home / "anchor")
for folder in (home / "court.expert", home / "clinic.expert", out / "new.expert"):
    verify_bundle(folder, anchor=facts, keys=None).close()
orders.write_order(out / "new.expert", out / "key.pem", out / "order.json")
orders.verify_order(out / "order.json")
frameworks = ("torch", "transformers", "safetensors", "jax", "tensorflow", "datasets", "pickle5")
print(sorted(name for name in sys.modules if name.split(".")[0] in frameworks))
"""


def test_the_whole_way_of_a_bundle_loads_no_framework(home: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", _SCRIPT, str(home), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    assert result.stdout == "[]\n"
