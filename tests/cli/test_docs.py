"""The pages that a program writes or a reader types are current."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
from small_runs import CONF, SMALL

DOCS = CONF.parent / "docs"


def test_the_configuration_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("configuration", DOCS / "configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == module.text(), (
        "run: python docs/configuration.py"
    )


def test_the_worked_example_of_a_method_runs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import strategies

    page = (DOCS / "adding-a-method.md").read_text(encoding="utf-8")
    strategy, test = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (choice,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "strategy" / "even_mean.yaml").write_text(choice)
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "even_mean.py").write_text(strategy)
    monkeypatch.setattr(
        strategies, "__path__", [*strategies.__path__, str(tmp_path / "strategies")]
    )

    names: dict[str, object] = {}
    exec(test, names)
    names["test_the_mean_does_not_depend_on_the_numbers_of_examples"]()  # type: ignore[operator]
    summary = a_run(tiny, tmp_path)

    assert summary["strategy"] == "even_mean"
    assert summary["rounds"] == 2
    sys.modules.pop("strategies.even_mean")


def a_run(tiny: Path, folder: Path) -> dict[str, object]:
    from local_grid import LocalGrid

    from fedtuners.config import compose
    from server_app.run import run

    own = [f"model={tiny / 'llama'}", "model.dtype=float32", f"data={tiny / 'rows.jsonl'}", *SMALL]
    config = compose(
        [*own, "strategy=even_mean", "adapter=lora", "adapter.rank=2"], folder / "conf"
    )
    return run(config, LocalGrid(2), "even-mean")
