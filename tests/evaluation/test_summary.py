"""What an evaluation writes, from lines by hand."""

import json

from star.evaluation.summary import write_scores


def test_the_headline_of_geneval_is_the_mean_of_its_tags_means(tmp_path):
    images = [("a", "colors", 1.0), ("b", "colors", 1.0), ("c", "counting", 0.0)]
    lines = [
        {"id": name, "detail": {"tag": tag, "strict": s > 0.5, "soft": s}, "quality": {}}
        for name, tag, s in images
    ]
    write_scores(tmp_path, {}, {"geneval": lines}, 50, 0)
    found = json.loads((tmp_path / "scores.json").read_text())["benchmarks"]["geneval"]
    assert found["strict"] == found["soft"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["tags"]["colors"] == {"strict": 1.0, "soft": 1.0, "n": 2}
