"""References to weights, against a hub on this machine."""

import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from stablesr_jax.checkpoints import hub
from stablesr_jax.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
  ("main", "weights/model.ckpt"): b"the weights",
  ("v2", "weights/model.ckpt"): b"other weights",
  ("main", "model_index.json"): b"{}",
  ("main", "unet/config.json"): b'{"a": 1}',
  ("main", "unet/model.safetensors"): b"full",
  ("main", "unet/model.fp16.safetensors"): b"half",
  ("main", "v2-1_768-ema-pruned.safetensors"): b"single file",
  ("main", "unet/model.bin"): b"pickle",
}
REVISIONS = {"main": COMMIT, "v2": COMMIT[::-1]}


class _Hub(http.server.BaseHTTPRequestHandler):
  """What huggingface_hub asks of a hub for the public repository owner/repo."""

  def do_GET(self):
    path = self.path.partition("?")[0]
    if path.startswith("/api/models/owner/repo"):
      return self._api(path)
    start = "/owner/repo/resolve/"
    if not path.startswith(start):
      return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
    revision, _, name = path.removeprefix(start).partition("/")
    revision = {commit: branch for branch, commit in REVISIONS.items()}.get(revision, revision)
    if revision not in REVISIONS:
      return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
    body = FILES.get((revision, name))
    if body is None:
      return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISIONS[revision]})
    self._answer(200, body, {"ETag": f'"{revision}-{name}"', "X-Repo-Commit": REVISIONS[revision]})

  do_HEAD = do_GET

  def _api(self, path):
    names = [name for revision, name in FILES if revision == "main"]
    if "/tree/" in path:
      sizes = {name: len(FILES["main", name]) for name in names}
      answer = [{"type": "file", "path": name, "size": sizes[name], "oid": "ab" * 20} for name in names]
    else:
      answer = {"id": "owner/repo", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
    self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

  def _answer(self, status, body, headers):
    self.send_response(status)
    for key, value in {"Content-Length": str(len(body)), **headers}.items():
      self.send_header(key, value)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(body)

  def log_message(self, *_):
    pass


@pytest.fixture(scope="module")
def endpoint():
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield f"http://127.0.0.1:{server.server_address[1]}"
  server.shutdown()
  thread.join()
  server.server_close()


_RESOLVE = """
import json, sys, time
from stablesr_jax.checkpoints import hub
time.sleep = lambda seconds: None  # the library waits before it tries an unreachable hub again
answers = []
for reference in sys.argv[1:]:
  try:
    answers.append(str(hub.resolve(reference)))
  except ValueError as error:
    answers.append("error: " + str(error))
print(json.dumps(answers))
"""


def _resolve_elsewhere(endpoint, cache, *references):
  """Answers of `resolve` in a process that has `endpoint` as its hub: the library reads the variable when imported."""
  environment = {k: v for k, v in os.environ.items() if not k.upper().startswith("HF_") and "PROXY" not in k.upper()}
  environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
  environment |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
  done = subprocess.run(
    [sys.executable, "-c", _RESOLVE, *references],
    cwd=pathlib.Path(__file__).parents[1],
    env=environment,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0 and done.stderr == "", done.stderr
  return json.loads(done.stdout)


def test_paths_are_given_back(tmp_path, monkeypatch):
  (tmp_path / "a.ckpt").touch()
  assert hub.resolve(str(tmp_path)) == tmp_path
  assert hub.resolve(str(tmp_path / "a.ckpt")) == tmp_path / "a.ckpt"
  monkeypatch.setenv("HOME", str(tmp_path))
  assert hub.resolve("~/a.ckpt") == tmp_path / "a.ckpt"
  with pytest.raises(UserError, match=r"^owner/repo: no such file or folder .*hf://owner/repo/path"):
    hub.resolve("owner/repo")


@pytest.mark.parametrize(
  "rest", ["", "owner", "owner/", "/repo/x", "owner/repo@/x", "owner/repo/../x", "owner/repo//x"]
)
def test_malformed_references_are_refused(rest):
  with pytest.raises(ValueError, match="not a hub reference; write hf://"):
    hub.resolve("hf://" + rest)


def test_files_and_folders_come_from_the_hub(endpoint, tmp_path):
  references = [
    "hf://owner/repo/weights/model.ckpt",
    "hf://owner/repo@v2/weights/model.ckpt",
    "hf://owner/repo",
    "hf://owner/repo/none.ckpt",
    "hf://owner/repo@v9/weights/model.ckpt",
    "hf://owner/other/weights/model.ckpt",
  ]
  file, revised, folder, *errors = _resolve_elsewhere(endpoint, tmp_path, *references)
  assert pathlib.Path(file).read_bytes() == b"the weights"
  assert pathlib.Path(revised).read_bytes() == b"other weights"
  found = {str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob("*") if p.is_file()}
  assert found >= {"model_index.json", "unet/config.json", "unet/model.safetensors"}
  assert not found & {"unet/model.fp16.safetensors", "v2-1_768-ema-pruned.safetensors", "unet/model.bin"}
  for reference, error, why in zip(
    references[3:], errors, ["no file 'none.ckpt'", "no revision 'v9'", "no such repository"], strict=True
  ):
    assert error.startswith(f"error: {reference}: not available from {endpoint} ({why}") and "\n" not in error
    assert "set HF_ENDPOINT to a mirror or give a local file" in error


def test_a_hub_that_does_not_answer_is_named(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
    references = ["hf://owner/repo/weights/model.ckpt", "hf://owner/repo"]
    for reference, error in zip(references, _resolve_elsewhere(endpoint, tmp_path, *references), strict=True):
      assert error.startswith(f"error: {reference}: not available from {endpoint} (the hub cannot be reached")
      assert "HF_ENDPOINT" in error and "\n" not in error
