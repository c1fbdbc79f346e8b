import json
import sys

import pytest

from rectrain.api.errors import UserError
from rectrain_jobs import installation


@pytest.mark.parametrize(
    "variant, driver, refused",
    [("cuda", False, True), ("cuda", True, False), ("cpu", False, False), (None, False, False)],
    ids=["cuda without a driver", "cuda with a driver", "cpu", "unknown"],
)
def test_cuda_kernels_without_a_driver_are_refused_with_the_remedy(tmp_path, monkeypatch, variant, driver, refused):
    package = tmp_path / "fbgemm_gpu"
    (package / "docs").mkdir(parents=True)
    (package / "__init__.py").touch()
    if variant is not None:
        (package / "docs/target.default.json.py").write_text(json.dumps({"variant": variant}))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fbgemm_gpu", raising=False)
    monkeypatch.setattr(installation, "_has_driver", lambda: driver)
    if not refused:
        installation.check_kernels()
        return
    with pytest.raises(UserError, match=r"pip install --force-reinstall --no-deps fbgemm-gpu-cpu==1\."):
        installation.check_kernels()
