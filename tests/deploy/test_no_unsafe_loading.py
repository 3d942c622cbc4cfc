"""Nothing that is read can run code: an audit of the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADERS = ("UniqueKeys", "_Values", "yaml.SafeLoader")
SOURCES = sorted(path for package in ("raydense", "actors", "learner") for path in (ROOT / package).rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
REMOTE = {"torch.hub.load", "hub.load", "os.system", "os.popen"}


def findings(source: str) -> Iterator[str]:
    """What in a module could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name.endswith("torch.load") and keywords.get("weights_only") != "True":
            yield f"{node.lineno}: torch.load without weights_only=True"
        if name.split(".")[0] in UNPICKLERS and name.split(".")[-1] in ("load", "loads", "Unpickler", "open"):
            yield f"{node.lineno}: {name}"
        if name in ("yaml.load", "yaml.load_all") and keywords.get("Loader") not in (
            "UniqueKeys",
            "_Values",
            "yaml.SafeLoader",
        ):
            yield f"{node.lineno}: {name} without a safe loader"
        if (name.startswith("yaml.") and "unsafe" in name.lower()) or name == "yaml.full_load":
            yield f"{node.lineno}: {name}"
        if name in RUNS_TEXT | REMOTE:
            yield f"{node.lineno}: {name}"
        for keyword in ("shell", "trust_remote_code", "allow_pickle"):
            if keywords.get(keyword, "False") != "False":
                yield f"{node.lineno}: {name} with {keyword}"
        if name.endswith(".from_pretrained") and keywords.get("use_safetensors", "True") == "False":
            yield f"{node.lineno}: {name} of a pickle"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(path: Path) -> None:
    assert list(findings(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "bad",
    [
        "import torch; torch.load('x')",
        "torch.load(path, weights_only=False)",
        "pickle.loads(answer.content)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_audit_sees_what_it_looks_for(bad: str) -> None:
    assert len(list(findings(bad))) == 1


def test_our_yaml_loaders_are_safe_ones() -> None:
    import yaml

    from raydense.sections.values import UniqueKeys, _Values

    assert issubclass(UniqueKeys, yaml.SafeLoader)
    assert issubclass(_Values, UniqueKeys)
