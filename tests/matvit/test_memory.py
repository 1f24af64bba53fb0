from __future__ import annotations

import pytest

from matvit import memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with 2,000 kB available and no container."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 2000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def contain(folder, limit: str) -> None:
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text("600000\n")
    (folder / "memory.stat").write_text("anon 500000\ninactive_file 100000\n")


def test_the_machine_says_what_is_available(system):
    assert memory.available_memory() == 2000 * 1024


def test_the_smaller_of_machine_and_container_counts(system):
    contain(system, "1000000")
    assert memory.available_memory() == 1_000_000 - 600_000 + 100_000
    contain(system, "9000000000")
    assert memory.available_memory() == 2000 * 1024
    contain(system, "max")
    assert memory.available_memory() == 2000 * 1024


def test_a_system_that_does_not_say_is_not_guessed_at(system):
    (system / "meminfo").unlink()
    assert memory.available_memory() is None
