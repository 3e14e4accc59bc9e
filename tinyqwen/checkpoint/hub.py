"""Fetch a model from the Hugging Face hub: only what is needed, only if it fits, and whole.

huggingface_hub downloads and keeps the cache (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE mean what they always
mean). It writes each file under a temporary name and renames it when its size is right, so an interrupt at any moment
leaves a cache that the next call completes. Three things it leaves to others are done here:

    before   is there room for all of it? It warns and then fails half-way.
    after    is the folder complete? After an interrupt its cache may hold half a model, and calls that good offline.
    errors   one line each that says what to do.

It is imported inside the functions: the import takes half a second, and it reads its variables while being imported.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tinyqwen.checkpoint.folder import find_weights, read_index
from tinyqwen.checkpoint.safetensors_file import INDEX, SINGLE, one_line
from tinyqwen.errors import DiskFullError, ModelFilesError, NetworkError, TinyqwenError, UsageError
from tinyqwen.files import size_in_words
from tinyqwen.sizes import size_named

TEXT_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "LICENSE",
)  # fmt: skip


class HubFile(NamedTuple):
    """A file as the hub describes it. Large files are named by their sha256, small ones by their git blob id."""

    name: str
    size: int | None
    sha256: str | None
    blob_id: str | None


def resolve_model(
    model: str | None,
    size: str | None = None,
    base: bool = False,
    revision: str | None = None,
    offline: bool = False,
    progress: bool | None = None,
    verify: bool = False,
    weights: bool = True,
) -> Path:
    """The folder that `--model` or `--size` means, downloaded first if it is not a folder here.

    model   a folder (one that exists, or a text that begins with `.`, `/` or `~`), or a repository on the hub, which
            always has an owner: Qwen/Qwen2-0.5B-Instruct
    size    a published size, see `tinyqwen.sizes`; base asks for the model without chat training

    Errors: UsageError; those of `fetch`.

    >>> resolve_model(".")
    PosixPath('.')
    >>> resolve_model("./qwen")
    Traceback (most recent call last):
    tinyqwen.errors.UsageError: ./qwen: no such folder; check the path
    >>> resolve_model(None, size="6B")
    Traceback (most recent call last):
    tinyqwen.errors.UsageError: no size '6B'; there are 0.5B, 1.5B, 7B, 57B-A14B, 72B, 2.5-0.5B, 2.5-1.5B, 2.5-3B, \
2.5-7B, 2.5-14B, 2.5-32B, 2.5-72B
    """
    if (model is None) == (size is None):
        raise UsageError("give either --model FOLDER_OR_REPOSITORY or --size SIZE" + (", not both" if model else ""))
    if size is not None:
        model = size_named(size).hub_id(base)
    elif base:
        raise UsageError("--base goes with --size; with --model, name the base model's repository itself")
    elif model and (model.startswith((".", os.sep, "~")) or os.path.exists(model)):
        return folder_here(model)
    elif model and "/" not in model:
        raise no_name(model)
    return fetch(model or "", revision=revision, offline=offline, progress=progress, verify=verify, weights=weights)


def folder_here(model: str | Path) -> Path:
    """That folder. Errors: UsageError if it is none."""
    folder = Path(model).expanduser()
    if not folder.exists():
        raise UsageError(f"{model}: no such folder; check the path")
    if not folder.is_dir():
        raise UsageError(f"{model}: is a file; name the folder that holds the model")
    return folder


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: bool | None = None,
    verify: bool = False,
    weights: bool = True,
) -> Path:
    """The folder of that repository in the cache, complete; what is missing is downloaded.

    revision   branch, tag or commit; the main branch if None
    offline    use the cache alone, and send nothing
    progress   True draws bars on stderr
    verify     compare every file with the hash that the hub tells: about 1 s per GB
    weights    False leaves the weights out: config and tokenizer, some MB, say much about a model

    If the hub cannot be reached and the cache holds a complete copy, that copy is used, with a warning.
    Errors: NetworkError, DiskFullError, UsageError (not a repository's name), ModelFilesError (no safetensors in it, or
    a hash that differs).
    """
    from huggingface_hub import HfApi, constants

    if offline or constants.HF_HUB_OFFLINE:
        if verify:
            raise UsageError("verifying compares with the hub's hashes, so it cannot be done offline; go online")
        with clear_errors(repo_id, revision):
            return cached_folder(repo_id, revision, weights)
    try:
        with clear_errors(repo_id, revision), progress_bars(bool(progress)):
            info = HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=30)
            listing = {
                file.rfilename: HubFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
                for file in info.siblings or ()
            }
            return download(repo_id, revision, str(info.sha), listing, verify, weights)
    except HubUnreachable as error:
        try:
            folder = cached_folder(repo_id, revision, weights)
        except NetworkError:
            raise error from None
        warnings.warn(f"{error}; the copy in the cache is used", stacklevel=2)
        return folder


def download(
    repo_id: str, revision: str | None, commit: str, listing: dict[str, HubFile], verify: bool, weights: bool
) -> Path:
    """Bring what is needed of that commit and not in the cache yet. The weights come last: who has them has all."""
    from huggingface_hub import hf_hub_download

    def get(name: str) -> Path:
        path = cached(repo_id, commit, name)
        if path is not None and path.stat().st_size == listing[name].size:
            return path
        return Path(hf_hub_download(repo_id, name, revision=commit, force_download=path is not None))

    main = INDEX if INDEX in listing and SINGLE not in listing else SINGLE
    if absent := [name for name in ("config.json", main) if name not in listing]:
        raise ModelFilesError(f"{repo_id}: has no {' and no '.join(absent)}; choose a repository with safetensors")
    names = [name for name in (*TEXT_FILES, *([main] if weights else [])) if name in listing]
    if INDEX in names:
        shards = list(dict.fromkeys(read_index(get(INDEX)).values()))
        if absent := [name for name in shards if name not in listing]:
            raise ModelFilesError(f"{repo_id}: {INDEX} names {absent[0]}, which the repository lacks; use another one")
        names += shards
    check_room(repo_id, commit, [listing[name] for name in names])
    # Asking by the revision's name, once, makes the cache note which commit it was: offline calls look there.
    if Path(hf_hub_download(repo_id, "config.json", revision=revision)).parent.name != commit:
        raise NetworkError(f"{repo_id}: was updated at this very moment; run the same command again")
    paths = {name: get(name) for name in names}
    if verify:
        for name, path in paths.items():
            check_hash(path, listing[name])
    return paths["config.json"].parent


def cached(repo_id: str, revision: str | None, name: str) -> Path | None:
    """That file in the cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo_id, name, revision=revision)
    return Path(path) if isinstance(path, str) else None


def cached_folder(repo_id: str, revision: str | None, weights: bool) -> Path:
    """The folder of that revision in the cache, if it is complete. Sends nothing."""
    config = cached(repo_id, revision, "config.json")
    if config is None:
        raise NetworkError(
            f"{repo_id}: is not in the cache, and nothing may be downloaded offline; go online (unset HF_HUB_OFFLINE), "
            "or use --model FOLDER"
        )
    folder = config.parent
    if not weights:
        return folder
    try:
        main = find_weights(folder)
        names = read_index(main).values() if main.name == INDEX else [SINGLE]
        absent = sorted({name for name in names if not (folder / name).exists()})
    except ModelFilesError:
        absent = [f"{SINGLE} or {INDEX}"]
    if absent:
        raise NetworkError(
            f"{repo_id}: the cache holds only a part of it ({absent[0]} is missing); run the same command online once"
        )
    return folder


def check_room(repo_id: str, commit: str, files: list[HubFile]) -> None:
    """Before byte one: is there room for what is not in the cache yet?"""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    blobs = cache / f"models--{repo_id.replace('/', '--')}" / "blobs"
    needed = sum(
        file.size or 0
        for file in files
        if cached(repo_id, commit, file.name) is None
        and not any((blobs / key).exists() for key in (file.sha256, file.blob_id) if key)  # same file, older commit
    )
    place = next(place for place in (cache, *cache.parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskFullError(
            f"{repo_id}: needs {size_in_words(needed)} in {cache}, but only {size_in_words(free)} are free there; "
            "make room, or set HF_HOME to a folder on another disk"
        )


def check_hash(path: Path, file: HubFile) -> None:
    """Compare with what the hub says: sha256 of a large file; of a small one git's sha1, which hashes a heading too."""
    with open(path, "rb") as stream:
        if file.sha256:
            same = hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
        elif file.blob_id:
            content = stream.read()
            same = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.blob_id
        else:
            return
    if not same:
        raise ModelFilesError(
            f"{path}: its content is not what the hub published (the hash differs); delete {path.resolve()} and run "
            "the same command again"
        )


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Whether huggingface_hub draws its bars. The switch is the process's, so it is put back."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


# ---- errors ---------------------------------------------------------------------------------------------------------


class HubUnreachable(NetworkError):
    """The hub gave no answer, or none that makes sense: a copy in the cache will do."""


@contextmanager
def clear_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line each. What is not its doing passes through."""
    try:
        yield
    except (TinyqwenError, KeyboardInterrupt):
        raise
    except Exception as error:
        clear = explain(error, repo_id, revision or "main")
        if clear is None:
            raise
        raise clear from error


def no_name(model: str) -> UsageError:
    return UsageError(
        f"{model!r} is neither a folder here nor a repository's name; such names look like Qwen/Qwen2-0.5B-Instruct"
    )


def explain(error: Exception, repo_id: str, revision: str) -> TinyqwenError | None:
    """What that error of huggingface_hub, of its HTTP library or of the disk means to the user."""
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            return no_name(repo_id)
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, Exception):
            return explain(error.__cause__, repo_id, revision)  # why the hub could not be asked
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return NetworkError(f"{repo_id}: is not in the cache; unset HF_HUB_OFFLINE, or use --model FOLDER")
        case errors.GatedRepoError():
            return NetworkError(
                f"{repo_id}: is gated; accept its terms on its page, then set HF_TOKEN or run `hf auth login`"
            )
        case errors.RepositoryNotFoundError():
            return NetworkError(
                f"{repo_id}: no such repository on the hub, or no access; check the spelling, set HF_TOKEN if it is "
                "private, or use --model ./FOLDER for a folder here"
            )
        case errors.RevisionNotFoundError():
            return NetworkError(
                f"{repo_id}: has no revision {revision!r}; give a branch, tag or full commit that it has"
            )
        case errors.RemoteEntryNotFoundError():
            return ModelFilesError(f"{repo_id}: lacks a file ({one_line(error)}); choose another repository")
        case errors.HfHubHTTPError():
            status = error.response.status_code
            if status >= 500:
                return HubUnreachable(f"{repo_id}: the hub has a fault (HTTP {status}); try again later")
            hint = {401: "check HF_TOKEN", 403: "check HF_TOKEN and its rights", 429: "wait some minutes"}
            return NetworkError(f"{repo_id}: the hub refused (HTTP {status}); {hint.get(status, 'try again later')}")
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFullError(
                f"{repo_id}: the disk became full while downloading; make room, or set HF_HOME to another disk, and "
                "run the same command again"
            )
        case PermissionError():
            return UsageError(f"{error.filename}: cannot be written; set HF_HOME to a folder that can")
    family = " ".join(kind.__name__ for kind in type(error).__mro__)
    if type(error).__module__.startswith("httpx"):  # httpx or httpx2, as the library's release has it
        if "ProxyError" in family:
            return HubUnreachable(f"{repo_id}: the proxy failed ({one_line(error)}); check HTTPS_PROXY")
        if "Timeout" in family:
            return HubUnreachable(f"{repo_id}: the hub did not answer in time; try again, or use --offline")
        return HubUnreachable(
            f"{repo_id}: no connection to the hub ({one_line(error)}); check the network, or use --offline"
        )
    if isinstance(
        error, (OSError, RuntimeError, ValueError)
    ):  # a size that is wrong, a page that is not the hub's, ...
        return HubUnreachable(f"{repo_id}: the download failed ({one_line(error)}); run the same command again")
    return None
