from __future__ import annotations

import json

from app import doctor


def test_the_report_names_versions_devices_and_encoders():
    report = doctor.examine()
    assert report["versions"]["torch"] == doctor.installed("torch")
    assert report["problems"] == doctor.conflicts(report["versions"])
    assert {"threads", "gpus", "bfloat16", "faiss_gpus", "faiss_build", "encoders"} <= set(report)
    json.dumps(report)


def test_both_faiss_builds_at_once_come_with_the_command_that_repairs_it():
    (problem,) = doctor.conflicts({"faiss-gpu": "1.15.1", "faiss-cpu": "1.15.1"})
    assert "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-gpu" in problem
    assert doctor.conflicts({"faiss-gpu": "1.15.1", "faiss-cpu": None}) == []
    (problem,) = doctor.conflicts({"faiss-gpu": None, "faiss-cpu": None})
    assert problem.startswith("faiss is missing; run: pip install 'matvit-retrieval[cpu]'")


def test_a_broken_part_becomes_a_problem_not_a_crash(monkeypatch):
    def broken():
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "_torch", broken)
    assert any("torchvision::nms" in problem for problem in doctor.examine()["problems"])


def test_problems_stand_out_and_their_absence_is_said():
    report = doctor.examine()
    assert doctor.render({**report, "problems": []})[-1] == "no problems found"
    text = doctor.render({**report, "problems": ["the sky fell"]})
    assert text[-1] == "PROBLEM: the sky fell"
    assert "no problems found" not in text
