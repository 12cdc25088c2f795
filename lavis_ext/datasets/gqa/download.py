"""Fetch GQA from its authors' site: ``python -m lavis_ext.datasets.gqa.download OUT``.

The files are those of the download page (https://cs.stanford.edu/people/dorarad/gqa/download.html;
Hudson and Manning, 2019), laid out as this library reads them::

    OUT/questions/{train,val,testdev,...}_{balanced,all}_questions.json, train_all_questions/
    OUT/images/<imageId>.jpg
    OUT/sceneGraphs/{train,val}_sceneGraphs.json    with --parts scene_graphs
    OUT/eval/                                       with --parts eval
    OUT/downloads.json                              where each came from, its size and sha256

A download that was cut off goes on where it stopped, a folder appears under its name only once it
is complete, and a part that is complete is left alone without a look at the network.
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

from lavis_ext.common.downloads import (
    CHUNK,
    GB,
    Progress,
    Remote,
    ask,
    download,
    partial_of,
    say,
    size_of,
)
from lavis_ext.common.errors import UserError, command
from lavis_ext.common.files import parse_json, room_in, write_json

BASE_URL = "https://downloads.cs.stanford.edu/nlp/data/gqa/"
RECORDS = "downloads.json"


@dataclass(frozen=True)
class Part:
    """One archive of GQA.

    Attributes:
        archive: its name on the site.
        folder: where it is unpacked, below OUT.
        holds: a pattern that something in the folder must match.
        growth: unpacked size over packed, estimated high; it is known once the archive is there.
        sha256: of the archive, where one is known.
    """

    archive: str
    folder: str
    holds: str
    growth: float
    sha256: str | None = None


# GQA's authors publish no checksums. That of the images is the one that several projects have
# reported, independently of each other, for the site's file of 21,817,965,542 bytes.
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
    """Fetch ``parts`` of GQA, names of ``PARTS``, into ``out``.

    Args:
        out: the folder, made if it is absent.
        parts: what to fetch.
        base_url: where the archives lie; a mirror, for instance.
        keep_archives: whether to keep the archives once they are unpacked.
        accept_changed: whether to take an archive whose sha256 is not the one expected.

    An archive that lies in ``out`` already is used as it is, without the network.

    Raises:
        UserError: the site can't be reached or lacks a file, the disk is too small or can't be
            written, an archive is damaged, of another size or sha256, or holds a path that leaves
            its folder, or a folder is there that this function did not make.
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
                print(f"{archive} is there already; it is used as it is.")
            sha256 = _checked_sha256(archive, PARTS[name], record, accept_changed)
            size = archive.stat().st_size
            files = _unpack(archive, PARTS[name], out)
            record |= {"archive": archive.name, "size": size, "sha256": sha256, "files": files}
            _save(out, records)
            if not keep_archives:
                archive.unlink()
            print(f"{out / PARTS[name].folder}: {files:,} files.")
    except OSError as error:
        # The network's errors have become UserErrors, so this one is the disk's.
        raise UserError(
            f"{error.filename or out}: can't be read or written ({error.strerror or error}). "
            "What has arrived is kept; mend it and run the same command again."
        ) from error


# --- what is there -------------------------------------------------------------------------------


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
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    expected = records.get(name, {}).get("files")
    if expected is None:
        raise UserError(
            f"{folder} is there and was not made by this download. Leave the part out (--parts), "
            "or move the folder away."
        )
    found = sum(path.is_file() for path in folder.rglob("*"))
    if found < expected:
        raise UserError(
            f"{folder}: {found:,} files, of {expected:,} that were unpacked. Delete the folder and "
            "run again to fetch it anew."
        )
    print(f"{folder} is complete already: {found:,} files.")
    return True


def _require_space_for(
    names: Sequence[str], remotes: dict[str, "Remote"], out: Path, keep_archives: bool
) -> None:
    """All that is unpacked, and the archives that lie there at the same time."""
    to_fetch = {name: remotes[name].size if name in remotes else 0 for name in names}
    packed = {name: to_fetch[name] or (out / PARTS[name].archive).stat().st_size for name in names}
    unpacked = sum(size * PARTS[name].growth for name, size in packed.items())
    arrived = {name: size_of(partial_of(out / PARTS[name].archive)) for name in remotes}
    archives = [max(0, size - arrived.get(name, 0)) for name, size in to_fetch.items()]
    at_once = sum(archives) if keep_archives else max(archives, default=0)
    _require_space(out, unpacked + at_once, f"{', '.join(names)} (archives and unpacked, about)")


def _require_space(out: Path, needed: float, what: str) -> None:
    free = room_in(out)
    if needed > free:
        raise UserError(
            f"{out}: {what} takes {needed / GB:.1f} GB, and {free / GB:.1f} GB of the disk are "
            "free. Make room, name a folder on another disk, or ask for fewer --parts."
        )


# --- from archive to folder ----------------------------------------------------------------------


def _checked_sha256(archive: Path, part: Part, record: dict[str, Any], accept_changed: bool) -> str:
    """The archive's sha256, compared with an earlier download's or the known one."""
    say(f"{archive.name}: computing its sha256.")
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    earlier = record.get("sha256")
    expected = earlier or part.sha256
    source = "an earlier download's" if earlier else "the known one"
    if expected is None:
        print(f"{archive.name}: sha256 {found}. None is known to compare it with.")
    elif found == expected:
        print(f"{archive.name}: sha256 {found}, which is {source}.")
    elif accept_changed:
        print(f"{archive.name}: sha256 {found}; {source} is {expected}. Accepted.")
    else:
        raise UserError(
            f"{archive}: its sha256 is {found}; {source} is {expected}. Delete the file and run "
            "again, or take it as a new version with --accept-changed."
        )
    return found


def _unpack(archive: Path, part: Part, out: Path) -> int:
    """Unpack into the part's folder, all or nothing. Returns the number of files."""
    aside = out / f".{part.folder}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, archive)
            total = sum(member.file_size for member, _ in members)
            _require_space(out, total, f"{archive.name}, unpacked,")
            progress, done = Progress(f"{archive.name}, unpacking", 0, total), 0
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
                f"{archive}: there is no {part.holds} in it, so it is not GQA's {part.folder}. "
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
            "again to fetch it anew."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return len(members)


def _members(opened: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The archive's files and their paths in the folder, without one that all have in common."""
    members = []
    for member in opened.infolist():
        path = PureWindowsPath(member.filename)  # knows the separators and roots of all systems
        if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(
                f"{archive}: it holds '{member.filename}', which leads out of its folder. Nothing "
                "was unpacked; delete the file, and ask where it came from."
            )
        if not member.is_dir() and path.parts[0] != "__MACOSX":
            members.append((member, PurePosixPath(*path.parts)))
    if len({path.parts[0] for _, path in members}) == 1:
        nested = all(len(path.parts) > 1 for _, path in members)
        return [(m, PurePosixPath(*path.parts[1:])) if nested else (m, path) for m, path in members]
    return members


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Fetch GQA."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.datasets.gqa.download",
        description="Fetch GQA from its authors' site and lay it out as this library reads it.",
    )
    parser.add_argument(
        "out", type=Path, nargs="?", default=Path("data/gqa"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=NEEDED_FOR_TRAINING,
        help="what to fetch; questions and images are what training needs, and the default",
    )
    parser.add_argument("--base-url", default=BASE_URL, help="where the archives lie (%(default)s)")
    parser.add_argument(
        "--keep-archives", action="store_true", help="keep the archives once they are unpacked"
    )
    parser.add_argument(
        "--accept-changed",
        action="store_true",
        help="take archives whose sha256 is not the known one or an earlier download's",
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
        say("\nStopped. The same command goes on from here.")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
