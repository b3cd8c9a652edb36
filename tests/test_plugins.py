"""Parts from other packages: a real one is built, installed into a folder, and found from another process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the plugin installed as pip installs it, without a network."""
    source = tmp_path_factory.mktemp("source") / "plugin"  # building writes beside the sources
    shutil.copytree(ROOT / "tests" / "plugin", source)
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, source], check=True, capture_output=True, text=True)
    return target


def run(code, *path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def error_of(kind, word, *path):
    code = (
        "from curate import registry\n"
        "from curate.exceptions import InputError\n"
        f"try: registry.find({kind!r}, {word!r})\n"
        "except InputError as error: print(error)\n"
    )
    return run(code, *path)


def test_plugins_are_listed_without_being_imported(site):
    code = (
        "import sys\n"
        "from curate import registry\n"
        "print(*registry.names('scorers'), *registry.names('selectors'), *registry.names('correctors'))\n"
        "assert not [m for m in sys.modules if m.startswith('curate_plugin')]\n"
    )
    words = run(code, site).split()
    assert {"vowels", "every-other", "full-stop", "broken", "likelihood", "top-k", "s3ft"} <= set(words)
    assert not {"vowels", "every-other", "full-stop"} & set(run(code).split())  # gone where it is not installed


def test_a_plugin_keeps_the_laws(site):
    code = (
        "from curate import registry\n"
        "from curate.testing import check_corrector, check_scorer, check_selector, odd_examples\n"
        "scorer, selector = registry.find('scorers', 'vowels'), registry.find('selectors', 'every-other')\n"
        "corrector = registry.find('correctors', 'full-stop')\n"
        "check_scorer(scorer())\n"
        "check_selector(selector())\n"
        "check_corrector(corrector(), odd_examples(), {'vowels': scorer().score(odd_examples())})\n"
        "print(scorer.__module__, selector.__module__, corrector.__module__)\n"
    )
    assert run(code, site).split() == ["curate_plugin_example"] * 3


def test_what_offers_something_else_is_no_corrector(site):
    message = error_of("correctors", "not-a-corrector", site)
    assert "'not-a-corrector' is 'curate_plugin_example:Vowels'" in message
    assert message.endswith("which is no subclass of curate.Corrector.")


def test_a_built_in_word_cannot_be_taken_over(site):
    code = "from curate import registry; print(registry.find('scorers', 'column').__module__)"
    assert run(code, site) == "curate.scorers.column"


@pytest.mark.parametrize(
    ("word", "texts"),
    [
        ("broken", ["'broken' is 'curate_plugin_example.broken:Broken' of the package 'curate-plugin-example'",
                    "cannot be loaded: ImportError: cannot import name 'SomethingThatIsGone'",
                    "; repair or uninstall that package."]),
        ("absent", ["cannot be loaded: AttributeError: ", "has no attribute 'NotThere'"]),
        ("not-a-scorer", ["which is no subclass of curate.Scorer."]),
        ("misnamed", ["whose class calls itself 'vowels'; the two must agree."]),
        ("vowel", ["no scorer is called 'vowel'; did you mean 'vowels'? Known: absent, attribution, "]),
        ("zzz", ["no scorer is called 'zzz'. Known: absent, "]),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_an_error_only_when_it_is_used(site, word, texts):
    message = error_of("scorers", word, site)
    for text in texts:
        assert text in message


def test_one_word_claimed_by_two_packages(site, tmp_path):
    info = tmp_path / "rival-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[curate.scorers]\nvowels = rival:Vowels\n")
    message = error_of("scorers", "vowels", site, tmp_path)
    claims = "'curate_plugin_example:Vowels', 'rival:Vowels'"
    assert message == f"the scorer 'vowels' is offered by 2 packages: {claims}; uninstall all but one."


def test_one_package_installed_twice_is_one_offer(site, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(site, again)
    assert run("from curate import registry; print(registry.find('scorers', 'vowels').name)", site, again) == "vowels"
