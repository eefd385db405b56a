"""Pages of the site that are made from other files, and links that leave docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fxrebasin

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+|docs/)?([^)#:\s]+)(#[^)]*)?\)")


def api_page() -> str:
    """All public names, each with its docstring."""
    parts = ["# Python\n\nEverything below is a name in `fxrebasin`.\n"]
    for name in fxrebasin.__all__:
        home = getattr(getattr(fxrebasin, name), "__module__", "")
        if home.startswith("fxrebasin"):  # else an alias of a type, or a text
            parts.append(f"::: {home}.{name}\n")
    return "\n".join(parts)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that are not in docs/."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "api.md", content=api_page()))
    for source, page in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    results = ROOT / "benchmarks" / "results"
    for path in sorted([*results.rglob("*.png"), *results.rglob("*.csv")]):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to what is on the site go there; those to source files become their text."""
    up = "../" * page.file.src_uri.count("/")

    def target(match: re.Match[str]) -> str:
        picture, text, outside, path, anchor = match.groups()
        if outside is None and files.get_file_from_path(path) is not None:
            return match.group(0)
        name = COPIED.get(path, path)
        if files.get_file_from_path(name) is None:
            return match.group(0) if outside is None else str(text)
        return f"{picture}[{text}]({up}{name}{anchor or ''})"

    return LINK.sub(target, markdown)
