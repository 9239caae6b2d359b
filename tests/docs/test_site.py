"""The site builds strictly, needs nothing from elsewhere, and says what the code does."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from printed_examples import blocks_of

import autovoice
from autovoice import errors

ROOT = Path(__file__).resolve().parents[2]
MIN_WORDS = 12  # letters that a message must have in common with the code
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "demo" / "README.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"""<(?:script|img|iframe|audio|source)\b[^>]*\bsrc="(?:https?:)?//[^"]+""")
    linked = re.compile(r"""<link\b[^>]*\brel="(?:stylesheet|preconnect|preload|icon)"[^>]*""")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not loaded.findall(text), page
        assert not [link for link in linked.findall(text) if re.search(r"""href="(?:https?:)?//""", link)], (
            page
        )


def test_reference_has_every_public_name(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in autovoice.__all__:
        if name == "__version__":
            continue
        home = getattr(autovoice, name).__module__
        assert f'id="{home}.{name}"' in text or f'id="autovoice.{name}"' in text, name
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert f'id="autovoice.errors.{name}"' in text, name


def test_links_lead_somewhere() -> None:
    """Those of the documents outside the site; the build checks the others."""
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert "://" in link or (document.parent / link).exists(), f"{document.name} links to {link}"


def messages() -> list[re.Pattern[str]]:
    """Every text in the code that could be an error's, as a pattern with gaps for its values."""
    patterns = []
    for folder in ("clients", "export"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts = [node.value]
                else:
                    continue
                if sum(len(str(part)) for part in parts if part is not None) >= MIN_WORDS:
                    gaps = "".join(".*" if part is None else re.escape(str(part)) for part in parts)
                    patterns.append(re.compile(gaps))
    return patterns


def test_messages_explained_are_messages_of_the_code() -> None:
    patterns = messages()
    shown = [
        " ".join(block.code.split())
        for block in blocks_of(ROOT / "docs" / "troubleshooting.md")
        if block.language == "text"
    ]
    assert len(shown) > 20
    assert not [text for text in shown if not any(pattern.fullmatch(text) for pattern in patterns)]


def test_every_error_is_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, (Exception, Warning)):
            assert name == "RequestError" or f"`{name}`" in text, name
