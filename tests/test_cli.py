"""What the scripts say when they are stopped."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import cli
from utils.signals import Interrupted


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped by SIGTERM")])
@pytest.mark.parametrize("resumes", [True, False])
def test_only_scripts_that_go_on_promise_to(
    stop: BaseException, resumes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, cli.exits(resumes):
        raise stop
    said = capsys.readouterr().err
    assert ended.value.code == cli.INTERRUPTED and said.startswith("stopped") and said.count("\n") == 1
    assert ("the same command goes on" in said) == resumes == ("what was finished stays" not in said)


def full_gpu() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("take", [lambda: torch.empty(2**60), lambda: np.empty(2**50), full_gpu],
                         ids=["PyTorch", "NumPy", "GPU"])  # fmt: skip
def test_too_little_memory_is_one_sentence(take: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, cli.exits():
        take()
    said = capsys.readouterr().err
    assert ended.value.code == cli.BAD_INPUT and "--batch-size" in said and said.count("\n") == 1


def test_other_errors_of_ours_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"), cli.exits():
        raise RuntimeError("a bug")


def test_paths_that_are_refused_are_one_sentence_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, remedy in ((file, "a file is where a folder should be"), (file / "below", "a file is where")):
        with pytest.raises(SystemExit) as ended, cli.exits():
            path.mkdir()
        said = capsys.readouterr().err
        assert ended.value.code == cli.BAD_INPUT and said.count("\n") == 1
        assert said.startswith(f"error: {path}: ") and remedy in said and "take another path" in said
    with pytest.raises(SystemExit), cli.exits():
        raise PermissionError(errno.EACCES, "Permission denied", str(file))
    assert capsys.readouterr().err == f"error: {file}: permission denied: see to its rights, or take another path\n"
