"""A digest changes with what computes and stays with what is only said about it."""

from __future__ import annotations

import ast
import math
import shutil
import sys
from pathlib import Path

import pytest

import vetgate.digest
from vetgate.digest import canonical_json, code_digest, sha256_json, syntax
from vetgate.reach import outline

PACKAGE = Path(vetgate.digest.__file__).parent


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the library that a test may edit."""
    copy = tmp_path / "vetgate"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(vetgate.digest, "PACKAGE", copy)
    return copy


def rewrite(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_canonical_json_is_sorted_unspaced_and_utf8():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()


def test_the_digest_does_not_depend_on_the_order_of_keys():
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 2, "b": 1})


def test_the_digest_of_nothing_is_known():
    assert sha256_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("value", [math.nan, math.inf, {"deep": [-math.inf]}])
def test_what_is_not_finite_has_no_digest(value):
    with pytest.raises(ValueError):
        sha256_json(value)


def test_a_copy_of_the_code_has_the_same_digest(package):
    copied = code_digest("detect", "neural_cleanse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vetgate.digest, "PACKAGE", PACKAGE)
        assert code_digest("detect", "neural_cleanse") == copied


def test_a_reworded_comment_or_docstring_voids_nothing(package):
    before = code_digest("detect", "neural_cleanse")
    rewrite(package / "detect" / "neural_cleanse.py", '"""Neural Cleanse:', '"""Reworded:')
    rewrite(package / "search.py", "# keeps tanh invertible", "# reworded")
    old = "down after as many bad ones."
    rewrite(package / "search.py", old, "and down again.")
    assert code_digest("detect", "neural_cleanse") == before


def test_a_changed_number_voids_the_method_that_imports_it_and_no_other(package):
    before = {name: code_digest("detect", name) for name in ("neural_cleanse", "spectral_signatures")}
    rewrite(package / "search.py", "patience: int = 3", "patience: int = 4")
    assert code_digest("detect", "neural_cleanse") != before["neural_cleanse"]
    assert code_digest("detect", "spectral_signatures") == before["spectral_signatures"]


def test_what_is_reached_through_what_is_reached_counts_too(package):
    before = code_digest("detect", "neural_cleanse")
    rewrite(package / "probe.py", "MAD_TO_SIGMA = 1.4826", "MAD_TO_SIGMA = 1.5")
    assert code_digest("detect", "neural_cleanse") != before


def test_what_runs_every_method_counts_for_every_method(package):
    before = [code_digest("detect", name) for name in ("neural_cleanse", "spectral_signatures")]
    rewrite(package / "contract.py", "np.random.seed(derived % 2**32)", "np.random.seed(derived % 2**31)")
    after = [code_digest("detect", name) for name in ("neural_cleanse", "spectral_signatures")]
    assert not set(before) & set(after)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("guard/strip.py", "torch.randperm(len(subject.clean))", "torch.arange(len(subject.clean))"),
        ("guard/strip.py", "entropies.logsumexp(1)", "entropies.mean(1)"),
        ("guard/contract.py", "+ 1) * (1 - rate)", ") * (1 - rate)"),
    ],
)
def test_how_a_guard_is_fitted_scored_and_cut_counts_for_it(package, file, before, after):
    digests = code_digest("guard", "strip"), code_digest("detect", "neural_cleanse")
    rewrite(package / file, before, after)
    assert code_digest("guard", "strip") != digests[0] and code_digest("detect", "neural_cleanse") == digests[1]


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        (
            "contract.py",
            "@dataclass(frozen=True, eq=False)\nclass Repair:",
            "class Stranger(DefenceError):\n    pass\n\n\n@dataclass(frozen=True, eq=False)\nclass Repair:",
        ),
        ("contract.py", "    paper: str\n", '    paper: str\n    title: str = ""\n'),
        ("errors.py", "exit_code: ClassVar[int] = 2", "exit_code: ClassVar[int] = 9"),
        ("probe.py", "def accuracy(", "def unused() -> int:\n    return 1\n\n\ndef accuracy("),
        ("detect/neural_cleanse.py", 'needs={"clean"}', 'needs={"clean"}, waived={"check": "reason"}'),
        ("detect/neural_cleanse.py", "labels: list[int], share", "labels: Any, share"),
    ],
)
def test_what_changes_no_number_voids_nothing(package, file, before, after):
    digest = code_digest("detect", "neural_cleanse")
    rewrite(package / file, before, after)
    assert code_digest("detect", "neural_cleanse") == digest


def test_where_a_definition_stands_is_of_no_matter(package):
    before = code_digest("detect", "neural_cleanse")
    (package / "robust").mkdir()
    (package / "probe.py").rename(package / "robust" / "estimates.py")
    for path in package.rglob("*.py"):
        path.write_text(path.read_text().replace("vetgate.probe", "vetgate.robust.estimates"))
    assert code_digest("detect", "neural_cleanse") == before


def test_two_definitions_that_change_places_are_others(tmp_path):
    places = {}
    for name, (first, second) in {"as": ("a", "b"), "exchanged": ("b", "a")}.items():
        package = tmp_path / name / "vetgate"
        package.mkdir(parents=True)
        (package / "a.py").write_text("def f():\n    return 1\n")
        (package / "b.py").write_text("def f():\n    return 2\n")
        (package / "m.py").write_text(
            f"from vetgate.{first} import f as one\nfrom vetgate.{second} import f as two\n\n\n"
            "def start():\n    return one() - two()\n"
        )
        places[name] = outline(package, [("m", "start")])
    assert places["as"] != places["exchanged"]


def test_a_method_of_a_class_counts_when_its_name_is_mentioned(tmp_path):
    package = tmp_path / "vetgate"
    package.mkdir()
    text = "class Box:\n    def used(self):\n        return 1\n\n    def unused(self):\n        return 2\n"
    (package / "m.py").write_text(text + "\n\ndef start():\n    return Box().used()\n")
    before = outline(package, [("m", "start")])
    rewrite(package / "m.py", "return 2", "return 3")
    assert outline(package, [("m", "start")]) == before
    rewrite(package / "m.py", "return 1", "return 4")
    assert outline(package, [("m", "start")]) != before


def test_what_a_foreign_base_may_call_counts(tmp_path):
    package = tmp_path / "vetgate"
    package.mkdir()
    text = "from torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n        return x\n"
    (package / "m.py").write_text(text + "\n\ndef start(x):\n    return Net()(x)\n")
    before = outline(package, [("m", "start")])
    rewrite(package / "m.py", "        return x\n", "        return -x\n")
    assert outline(package, [("m", "start")]) != before


def test_another_library_under_the_same_name_is_another(tmp_path):
    found = []
    for line in ("from numpy import median", "from torch import median"):
        package = tmp_path / line.split()[1] / "vetgate"
        package.mkdir(parents=True)
        (package / "m.py").write_text(f"{line}\n\n\ndef start(x):\n    return median(x)\n")
        found.append(outline(package, [("m", "start")]))
    assert found[0] != found[1]


def test_an_import_of_a_whole_module_of_ours_is_refused(tmp_path):
    package = tmp_path / "vetgate"
    package.mkdir()
    (package / "a.py").write_text("def f():\n    return 1\n")
    (package / "m.py").write_text("from vetgate import a\n\n\ndef start():\n    return a.f()\n")
    with pytest.raises(ValueError, match="import its names"):
        outline(package, [("m", "start")])


def test_code_is_written_as_python_3_11_writes_it_whichever_python_runs():
    written = syntax(ast.parse("def f(x, *, y=None): return [x]\nclass C: pass\n"))
    assert written == (
        "Module(body=[FunctionDef(name='f', args=arguments(posonlyargs=[], args=[arg(arg='x')], "
        "kwonlyargs=[arg(arg='y')], kw_defaults=[Constant(value=None)], defaults=[]), "
        "body=[Return(value=List(elts=[Name(id='x', ctx=Load())], ctx=Load()))], decorator_list=[]), "
        "ClassDef(name='C', bases=[], keywords=[], body=[Pass()], decorator_list=[])], type_ignores=[])"
    )


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later ones write other trees")
def test_every_module_is_written_as_ast_dump_does():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert syntax(tree) == ast.dump(tree), path


def test_a_method_that_is_not_there_has_no_digest():
    with pytest.raises(FileNotFoundError):
        code_digest("detect", "no_such_method")
