"""Which model is meant, told without loading it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from curate.exceptions import ModelError
from curate.models.identity import _digests, identify, locate


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_folders_identity_is_its_contents(folder: Path, tmp_path: Path) -> None:
    first = identify(str(folder))
    assert list(first) == ["digest"] and len(first["digest"]) == 32
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert identify(str(moved)) == first
    (folder / "README.md").write_text("words")
    (folder / "optimizer.pt").write_bytes(b"state")
    assert identify(str(folder)) == first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_one_byte_makes_another_model(folder: Path, name: str) -> None:
    first, tokenizer = identify(str(folder)), identify(str(folder), weights=False)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert identify(str(folder)) != first
    assert (identify(str(folder), weights=False) == tokenizer) == (name == "model.safetensors")


def test_files_are_read_once_while_they_stay_the_same(folder: Path) -> None:
    first = identify(str(folder))
    key = next(k for k in _digests if k[0] == str((folder / "model.safetensors").resolve()))
    _digests[key] = "remembered"
    assert identify(str(folder)) != first  # it was taken from memory
    del _digests[key]
    assert identify(str(folder)) == first


def test_a_folder_that_is_not_there(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no such folder \(.* holds model/\), and not a name on the Hub"):
        identify(str(tmp_path / "modle"))
    with pytest.raises(ModelError, match="is a file; give the folder"):
        identify(str(folder / "config.json"))


def test_a_folder_that_holds_something_else(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json; .* holds chat_template\.jinja, "):
        identify(str(folder))
    assert identify(str(folder), weights=False)  # enough for a tokenizer
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="PEFT adapter: merge it"):
        identify(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        identify(str(folder), weights=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is empty"):
        identify(str(tmp_path / "empty"))


def test_a_folder_above_the_model(folder: Path) -> None:
    with pytest.raises(ModelError, match=f"Did you mean {str(folder)!r}"):
        identify(str(folder.parent))


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights only \(pytorch_model\.bin\).*convert them once"):
        identify(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has no \*\.safetensors"):
        identify(str(folder))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tiny_model: Path, tmp_path: Path) -> Path:
    """A Hub cache that holds acme/tiny, as a download would have left it."""
    repo = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(tiny_model, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


def test_a_hub_model_offline_is_its_cached_commit(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub_cache))
    assert identify("acme/tiny") == {"model": "acme/tiny", "revision": COMMIT}
    assert identify("acme/tiny@main") == identify("acme/tiny") == identify(f"acme/tiny@{COMMIT}")
    assert locate("acme/tiny").arguments == {"revision": COMMIT, "trust_remote_code": False}
    for name in ("acme/tinny", "acme/tiny@v2"):
        with pytest.raises(
            ModelError, match=f"model {name!r}: no folder of that name; HF_HUB_OFFLINE is set.*hf download acme"
        ):
            identify(name)


def test_a_hub_model_offline_is_scored_from_the_cache(hub_cache: Path) -> None:
    """In a process of its own: the libraries read where their cache is when they are imported."""
    program = """
import json, numpy as np
from curate import models
row = models.encoder("acme/tiny").encode([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])[0]
lm = models.load("acme/tiny", device="cpu")
print(json.dumps([models.identify("acme/tiny"), lm.token_logprobs([(row.ids, row.mask)])[0].tolist()]))
"""
    environment = {"HF_HUB_CACHE": str(hub_cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    identity, logprobs = json.loads(done.stdout)
    assert identity == {"model": "acme/tiny", "revision": COMMIT}
    assert len(logprobs) == 2 and max(logprobs) < 0


def test_identity_imports_no_model_library() -> None:
    program = "import sys, curate.models.identity, curate.models, curate.scorers.likelihood, curate.scorers.length\n"
    program += "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'jinja2') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
