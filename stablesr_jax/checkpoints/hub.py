"""Turns a reference to weights, a path or `hf://owner/repo/file`, into a local path."""

import pathlib

from stablesr_jax.errors import UserError, first_line

_SCHEME = "hf://"
_FORMS = "write hf://owner/repo/path/to/file or hf://owner/repo, with @revision after repo if wanted"
# A repository often holds its weights several times over. Wanted are the settings, the vocabulary, and one copy of
# each part; not half-precision or non-averaged variants, nor the single-file edition beside the folders.
_FOLDER_FILES = ["*.json", "*.txt", "*.safetensors", "*.md"]
_FOLDER_LEFT_OUT = ["*.fp16.*", "*non_ema*", "*-pruned*", "sd_turbo.safetensors", "safety_checker/*"]


def resolve(reference: str) -> pathlib.Path:
  """The local path of a reference; what lies on the Hugging Face hub is downloaded once and kept in its cache.

  Args:
    reference: a file or folder (`~` is expanded), `hf://owner/repo/path/to/file` for one file, or `hf://owner/repo`
      for a repository with a folder of weights (.json, .txt and .safetensors files); `@revision` may follow `repo`.
      A mirror is used by setting `HF_ENDPOINT`, a token by `HF_TOKEN`.

  Raises:
    UserError: there is no such file or folder.
    UserError: the reference is malformed, or the hub does not give the file.
  """
  reference = str(reference)
  if not reference.startswith(_SCHEME):
    path = pathlib.Path(reference).expanduser()
    if not path.exists():
      raise UserError(f"{reference}: no such file or folder (for the Hugging Face hub {_FORMS})")
    if not (path.is_file() or path.is_dir()):  # a pipe, which may never end
      raise UserError(f"{reference}: is neither a regular file nor a folder")
    return path

  repo, revision, file = _parse(reference)
  import huggingface_hub  # Late: it reads HF_ENDPOINT when imported, and local files need none of it.
  from huggingface_hub import errors
  from huggingface_hub.utils import logging

  level = logging.get_verbosity()
  logging.set_verbosity_error()  # it warns of each try, and the last one's error is told below
  try:
    if file:
      return pathlib.Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    folder = huggingface_hub.snapshot_download(
      repo, revision=revision, allow_patterns=_FOLDER_FILES, ignore_patterns=_FOLDER_LEFT_OUT
    )
    return pathlib.Path(folder)
  except Exception as error:  # The HTTP client underneath, and so its errors, differ by version of the library.
    known = (  # A kind before what it is a kind of.
      (errors.GatedRepoError, "the repository asks for its terms to be accepted, and for a token in HF_TOKEN"),
      (errors.RepositoryNotFoundError, "no such repository, or it is private"),
      (errors.RevisionNotFoundError, f"no revision {revision!r}"),
      (errors.LocalEntryNotFoundError, "the hub cannot be reached and the file is not in the cache"),
      (errors.EntryNotFoundError, f"no file {file!r} in the repository"),
      (errors.HFValidationError, f"{repo!r} is not the name of a repository"),
    )
    why = next((text for kind, text in known if isinstance(error, kind)), first_line(error))
    raise UserError(
      f"{reference}: not available from {huggingface_hub.constants.ENDPOINT} ({why});"
      " set HF_ENDPOINT to a mirror or give a local file"
    ) from error
  finally:
    logging.set_verbosity(level)


def _parse(reference: str) -> tuple[str, str | None, str]:
  """(owner/repo, revision or None, path of the file or "") of an `hf://` reference."""
  owner, _, rest = reference.removeprefix(_SCHEME).partition("/")
  repo, _, file = rest.partition("/")
  repo, at, revision = repo.partition("@")
  parts = [owner, repo, *([revision] if at else []), *(file.split("/") if file else [])]
  if any(part in ("", ".", "..") for part in parts):
    raise UserError(f"{reference}: not a hub reference; {_FORMS}")
  return f"{owner}/{repo}", revision or None, file
