"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest

from tests.media_factory import make_image, make_video

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_python_in_the_readme_embeds_and_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "a.mp4", num_frames=30)
    make_image(tmp_path / "videos" / "b.png")
    monkeypatch.chdir(tmp_path)
    call, search = SNIPPETS
    serial = call.replace("config=config)", 'config=config, runner="local")').replace(
        "Qwen/Qwen3-VL-2B-Instruct", "random:tiny"
    )
    exec(compile(serial, "README.md", "exec"), {})
    exec(compile(search, "README.md", "exec"), {})
    assert "b.png" in capsys.readouterr().out


def test_every_file_that_the_readme_names_exists() -> None:
    root = Path(__file__).resolve().parents[1]
    named = set(re.findall(r"`((?:pipeline|actors|configs|docs|benchmarks|tests)/[\w./]*)`", README))
    assert named
    assert all((root / name).exists() for name in named)
