"""Pages of the docs site beside those of docs/: the repository's own files, and the API reference.

A hook of `mkdocs build`, which reads it through mkdocs.yml.
"""

import ast
import re
from pathlib import Path
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "siglip2_jax"
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# What configs and users import; the other packages serve the command line.
PUBLIC = "config objectives data evals models preprocess inference checkpoints testing".split()
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)")


def on_config(config: MkDocsConfig) -> None:
    """Adds the API reference to the navigation."""
    pages = [{name: f"reference/{name}.md"} for name in ("siglip2_jax", *PUBLIC)]
    config.nav = [*(config.nav or ()), {"Reference": pages}]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the files of the repository's top folder, and a reference page for each package."""
    pages = {page: (ROOT / source).read_text() for source, page in TOP.items()}
    pages["reference/siglip2_jax.md"] = _reference("siglip2_jax", public_names())
    for name in PUBLIC:
        modules = sorted(path.stem for path in (PACKAGE / name).glob("[!_]*.py"))
        pages[f"reference/{name}.md"] = _reference(f"siglip2_jax.{name}", modules)
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns links between files into links between pages; links to other files keep their text."""
    folder = "" if page.file.src_uri in TOP.values() else "docs"

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        path = normpath(f"{folder}/{target}").removeprefix("/")
        if path in TOP:
            return f"[{text}]({TOP[path]}{anchor})"
        if path.startswith("docs/"):
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        return text

    return LINK.sub(link, markdown)


def public_names() -> list[str]:
    """Names in the index of the package, in its order."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if name != "__version__"]
    raise ValueError("siglip2_jax/__init__.py has no list __all__; expected one of public names")


def _reference(package: str, members: list[str]) -> str:
    """Markdown that mkdocstrings fills with the docstrings of a package's members."""
    return f"# {package}\n\n" + "".join(f"::: {package}.{member}\n\n" for member in members)
