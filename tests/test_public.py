"""The public interface is what the package exports, and is imported only when it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import privacy_gate
from privacy_gate.errors import ConfigurationError

GOLDEN = Path(__file__).parent / "data" / "reports" / "undecided.json"


def test_every_public_name_is_listed_found_and_documented() -> None:
    assert set(privacy_gate.__all__) <= set(dir(privacy_gate))
    for name in privacy_gate.__all__:
        assert getattr(privacy_gate, name) is not None
        if name != "__version__":
            assert getattr(privacy_gate, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'chekc'"):
        _ = privacy_gate.chekc  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    script = (
        "import sys, privacy_gate\n"
        "print([m for m in sys.modules if m.startswith('privacy_gate.') or m in ('torch', 'mlflow', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_report_is_loaded_by_path_and_a_missing_one_is_named(tmp_path: Path) -> None:
    assert privacy_gate.load_report(GOLDEN).verdict == "undecided"
    with pytest.raises(ConfigurationError, match=r"absent\.json: No such file"):
        privacy_gate.load_report(tmp_path / "absent.json")
