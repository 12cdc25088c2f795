"""Download GQA from its authors' site: ``python -m lavis_ext.datasets.gqa.download OUT``.

The files are those of the download page (https://cs.stanford.edu/people/dorarad/gqa/download.html;
Hudson and Manning, 2019), laid out as this library reads them::

    OUT/questions/{train,val,testdev,...}_{balanced,all}_questions.json, train_all_questions/
    OUT/images/<imageId>.jpg
    OUT/sceneGraphs/{train,val}_sceneGraphs.json    with --parts scene_graphs
    OUT/eval/                                       with --parts eval
    OUT/downloads.json                              where each came from, its size and sha256

Interrupted downloads are resumed, a folder gets its name only once it is complete, and complete
parts are skipped without using the network.
"""

import argparse
import hashlib
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lavis_ext.common.arguments import path_argument
from lavis_ext.common.downloads import (
    CHUNK,
    GB,
    Progress,
    Remote,
    ask,
    download,
    partial_of,
    print_stderr,
    size_of,
)
from lavis_ext.common.errors import UserError, command
from lavis_ext.common.files import entries, free_space, parse_json, write_json

BASE_URL = "https://downloads.cs.stanford.edu/nlp/data/gqa/"
RECORDS = "downloads.json"


@dataclass(frozen=True)
class Part:
    """One archive of GQA.

    Attributes:
        archive: file name on the site.
        folder: target folder below OUT.
        holds: glob pattern that a file in the folder must match.
        growth: upper estimate of the unpacked size over the packed one, until it is known.
        sha256: checksum of the archive, if known.
    """

    archive: str
    folder: str
    holds: str
    growth: float
    sha256: str | None = None


# GQA's authors publish no checksums. That of the images was reported independently by several
# projects for the site's file of 21,817,965,542 bytes.
PARTS = {
    "questions": Part("questions1.2.zip", "questions", "*_questions.json", 12),
    "images": Part(
        "images.zip",
        "images",
        "*.jpg",
        1.02,
        sha256="02ce5c49c793accd5305356de9c39a50f80a7aaac193b0203de30dbbc65bde62",
    ),
    "scene_graphs": Part("sceneGraphs.zip", "sceneGraphs", "*_sceneGraphs.json", 12),
    "eval": Part("eval.zip", "eval", "**/eval.py", 12),
}
NEEDED_FOR_TRAINING = ("questions", "images")


def download_gqa(
    out: Path,
    parts: Sequence[str] = NEEDED_FOR_TRAINING,
    *,
    base_url: str = BASE_URL,
    keep_archives: bool = False,
    accept_changed: bool = False,
) -> None:
    """Download ``parts`` of GQA to ``out``.

    Args:
        out: target folder, created if missing.
        parts: names in ``PARTS``.
        base_url: URL of the site or a mirror.
        keep_archives: whether to keep the archives after unpacking.
        accept_changed: whether to accept an archive with an unexpected sha256.

    An archive already in ``out`` is used without the network.

    Raises:
        UserError: for an unreachable site or missing file, a full or read-only disk, an archive
            that is damaged, has a wrong size or sha256 or a path outside its folder, or an existing
            folder of other origin.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        records = _read_records(out / RECORDS)
        absent = [name for name in dict.fromkeys(parts) if not _is_complete(name, out, records)]
        remotes = {
            name: ask(base_url.rstrip("/") + "/" + PARTS[name].archive)
            for name in absent
            if not (out / PARTS[name].archive).is_file()
        }
        _require_space_for(absent, remotes, out, keep_archives)
        for name in absent:
            archive = out / PARTS[name].archive
            record = records.setdefault(name, {})
            if name in remotes:
                download(remotes[name], archive, record, lambda: _save(out, records))
            else:
                print(f"{archive} exists already and is used.")
            sha256 = _checked_sha256(archive, PARTS[name], record, accept_changed)
            size = archive.stat().st_size
            files = _unpack(archive, PARTS[name], out)
            record |= {"archive": archive.name, "size": size, "sha256": sha256, "files": files}
            _save(out, records)
            if not keep_archives:
                archive.unlink()
            print(f"{out / PARTS[name].folder}: {files:,} files.")
    except OSError as error:
        # Network errors are UserErrors already, so this one is the disk's.
        raise UserError(
            f"{error.filename or out}: can't be read or written ({error.strerror or error}). "
            "Downloaded data is kept; fix this and run the same command again."
        ) from error


# --- existing parts -----------------------------------------------------------------------------


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}). Delete it and run again.") from None
    if not isinstance(content, dict) or not all(
        isinstance(each, dict) for each in content.values()
    ):
        raise UserError(f"{path}: not a record of downloads. Delete it and run again.")
    return content


def _save(out: Path, records: dict[str, dict[str, Any]]) -> None:
    write_json(out / RECORDS, records)


def _is_complete(name: str, out: Path, records: dict[str, dict[str, Any]]) -> bool:
    folder = out / PARTS[name].folder
    if not folder.exists() or (folder.is_dir() and not entries(folder)):
        return False
    expected = records.get(name, {}).get("files")
    if expected is None:
        raise UserError(
            f"{folder} exists and wasn't created by this download. Leave the part out (--parts), "
            "or move the folder."
        )
    found = sum(path.is_file() for path in folder.rglob("*"))
    if found < expected:
        raise UserError(
            f"{folder}: {found:,} of the {expected:,} unpacked files are left. Delete the folder "
            "and run again to download it again."
        )
    print(f"{folder} is complete already: {found:,} files.")
    return True


def _require_space_for(
    names: Sequence[str], remotes: dict[str, "Remote"], out: Path, keep_archives: bool
) -> None:
    """Raise UserError for too little space for the unpacked parts and concurrent archives."""
    to_fetch = {name: remotes[name].size if name in remotes else 0 for name in names}
    packed = {name: to_fetch[name] or (out / PARTS[name].archive).stat().st_size for name in names}
    unpacked = sum(size * PARTS[name].growth for name, size in packed.items())
    arrived = {name: size_of(partial_of(out / PARTS[name].archive)) for name in remotes}
    archives = [max(0, size - arrived.get(name, 0)) for name, size in to_fetch.items()]
    at_once = sum(archives) if keep_archives else max(archives, default=0)
    _require_space(out, unpacked + at_once, f"{', '.join(names)} (archives and unpacked, about)")


def _require_space(out: Path, needed: float, what: str) -> None:
    free = free_space(out)
    if needed > free:
        raise UserError(
            f"{out}: {what} takes {needed / GB:.1f} GB, and {free / GB:.1f} GB of the disk are "
            "free. Free some disk space, use a folder on another disk, or request fewer --parts."
        )


# --- from archive to folder ----------------------------------------------------------------------


def _checked_sha256(archive: Path, part: Part, record: dict[str, Any], accept_changed: bool) -> str:
    """The archive's sha256, compared with an earlier download's or the known one."""
    print_stderr(f"{archive.name}: computing sha256.")
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    earlier = record.get("sha256")
    expected = earlier or part.sha256
    source = "an earlier download's" if earlier else "the known one"
    if expected is None:
        print(f"{archive.name}: sha256 {found}. There is no known one to compare it with.")
    elif found == expected:
        print(f"{archive.name}: sha256 {found}, which is {source}.")
    elif accept_changed:
        print(f"{archive.name}: sha256 {found}; {source} is {expected}. Accepted.")
    else:
        raise UserError(
            f"{archive}: its sha256 is {found}; {source} is {expected}. Delete the file and run "
            "again, or accept it as a new version with --accept-changed."
        )
    return found


def _unpack(archive: Path, part: Part, out: Path) -> int:
    """Unpack atomically to the part's folder. Returns the number of files."""
    aside = out / f".{part.folder}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, archive)
            total = sum(member.file_size for member, _ in members)
            _require_space(out, total, f"{archive.name}, unpacked,")
            done = 0
            with Progress(f"{archive.name}, unpacking", 0, total) as progress:
                for member, path in members:
                    target = aside / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    # Reading to the end compares the member's CRC.
                    with opened.open(member) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file, CHUNK)
                    done += member.file_size
                    progress.at(done)
                progress.end()
        if next(aside.glob(part.holds), None) is None:
            raise UserError(
                f"{archive}: it has no {part.holds}, so it is not GQA's {part.folder}. "
                "Delete it and run again."
            )
        aside.rename(out / part.folder)
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        RuntimeError,
        ValueError,
    ) as error:
        raise UserError(
            f"{archive} is damaged ({error or type(error).__name__}). Delete that file and run "
            "again to download it again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return len(members)


def _members(opened: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Files of an archive with their target paths, without a common parent folder."""
    members = []
    for member in opened.infolist():
        path = PureWindowsPath(member.filename)  # handles separators and roots of all systems
        if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(
                f"{archive}: it has '{member.filename}', a path outside its folder. Nothing was "
                "unpacked; delete the file, and check where it came from."
            )
        if not member.is_dir() and path.parts[0] != "__MACOSX":
            members.append((member, PurePosixPath(*path.parts)))
    if len({path.parts[0] for _, path in members}) == 1:
        nested = all(len(path.parts) > 1 for _, path in members)
        return [(m, PurePosixPath(*path.parts[1:])) if nested else (m, path) for m, path in members]
    return members


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.datasets.gqa.download",
        description="Download GQA from its authors' site to the layout that this library reads.",
    )
    parser.add_argument(
        "out", type=path_argument, nargs="?", default=Path("data/gqa"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=NEEDED_FOR_TRAINING,
        help="parts to download; by default questions and images, which training needs",
    )
    parser.add_argument("--base-url", default=BASE_URL, help="URL of the archives (%(default)s)")
    parser.add_argument(
        "--keep-archives", action="store_true", help="keep the archives after unpacking"
    )
    parser.add_argument(
        "--accept-changed",
        action="store_true",
        help="accept archives with another sha256 than the known one or an earlier download's",
    )
    options = parser.parse_args(argv)
    try:
        download_gqa(
            options.out,
            options.parts,
            base_url=options.base_url,
            keep_archives=options.keep_archives,
            accept_changed=options.accept_changed,
        )
    except KeyboardInterrupt:
        print_stderr("\nStopped. Run the same command to resume.")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
