"""Writes what people share about a build beside its bundles: one page and one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepack import durable
from edgepack.errors import UsageError
from edgepack_packager.core.report import About, BuildResult
from edgepack_packager.core.report_page import report_markdown, report_svg

__all__ = ["write_page"]


def write_page(
    out_dir: Path,
    result: BuildResult,
    *,
    host: Mapping[str, Any],
    warnings: Sequence[str],
    about: About,
) -> tuple[Path, ...]:
    """Write `NAME-VERSION.report.md` and, if anything was built, its picture to OUT_DIR.

    Raises:
        UsageError: they cannot be written.
    """
    stem = f"{about.name}-{about.version}.report"
    picture = report_svg(result, host=host, about=about)
    page = report_markdown(
        result, host=host, warnings=warnings, about=about,
        picture=f"{stem}.svg" if picture else "",
    )  # fmt: skip
    written = {out_dir / f"{stem}.md": page} | (
        {out_dir / f"{stem}.svg": picture} if picture else {}
    )
    for path, text in written.items():
        try:
            durable.write_file(path, text.encode())
        except OSError as error:
            raise UsageError(
                f"cannot write {path}", why=error.strerror or str(error), reason="unwritable"
            ) from error
    return tuple(written)
