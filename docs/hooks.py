"""What the site needs besides MkDocs: pages that lie elsewhere in the repository, and that nothing is fetched.

Links to such pages work on the site as they do in a clone.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FOLDER = "repository"
PAGES = (
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "benchmarks/PROFILE.md",
    "benchmarks/README.md",
    "benchmarks/RESULTS.md",
    "calib_data/README.md",
    "recipes/imagenet/README.md",
)
_NOTE = re.compile(r"^<!-- test: .* -->\n", re.MULTILINE)
_ROW, _SPAN = re.compile(r"^\|.*$", re.MULTILINE), re.compile(r"`[^`\n]*`")
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=.?(?:https?:)?//|<link\b[^>]*stylesheet[^>]*(?:https?:)?//"
)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")

logger = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, below a folder of their own."""
    for name in PAGES:
        files.append(File.generated(config, f"{FOLDER}/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository, led to where their pages are on the site.

    And without what is said to tests; and with `|` in code in tables, which GitHub wants escaped, Python-Markdown not.
    """
    here = page.file.src_uri
    source = here.removeprefix(f"{FOLDER}/") if here.startswith(f"{FOLDER}/") else f"docs/{here}"

    def on_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        place = target.removeprefix("docs/") if target.startswith("docs/") else f"{FOLDER}/{target}"
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    rows = _ROW.sub(lambda row: _SPAN.sub(lambda code: code[0].replace("\\|", "|"), row[0]), markdown)
    return _LINK.sub(on_site, _NOTE.sub("", rows))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn of what readers would fetch from elsewhere."""
    for found in _FETCHED.findall(output):
        logger.warning("%s: would be fetched by readers: %s", page.file.src_uri, found)
    return output
