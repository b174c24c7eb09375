"""`supmim-scale scaling` as users call it: tables, runs, figures, one page."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT
from known_laws import grid, iso_flop, power_points, write

from supmim_scale.build.model import encoder_params, joint_shape, target_features
from supmim_scale.cli.main import main
from supmim_scale.config import digest, load_config, resolved
from supmim_scale.models.flops import step_flops
from supmim_scale.scaling.style import tick_text, ticks

QUICK = ("--bootstrap", "4", "--hold-out", "0")


@pytest.fixture
def table(tmp_path):
    n, d, c, metric = grid()
    return write(tmp_path / "runs.csv", params=n, samples_seen=d, train_flops=c, loss=metric)


def test_fit_prints_parameters_sizes_and_what_a_budget_buys(table, capsys):
    assert main(["scaling", "fit", str(table), *QUICK, "--budget", "1e21"]) == 0
    out = capsys.readouterr().out
    assert "parametric, E + A N^-alpha + B D^-beta" in out
    assert re.search(r"alpha +0\.3\d+ +\[0\.\d+, 0\.\d+\]", out)
    assert "approach 3  a 0.5" in out
    assert "1e+21 FLOPs (16.7x the most expensive run): " in out


def test_a_mistake_is_one_line_and_exit_code_2(table, capsys):
    assert main(["scaling", "fit", str(table), "--law", "powr"]) == 2
    said = capsys.readouterr().err.strip()
    assert said == "error: --law: found powr; expected a known law; did you mean power?"
    assert main(["scaling", "fit", str(table), "--metric", "acc"]) == 2
    assert main(["scaling", "fit", str(table.parent / "no.csv")]) == 2
    assert main(["scaling", "fit", str(table.parent)]) == 2
    capsys.readouterr()
    for option, value in (
        ("--hold-out", "1"),
        ("--delta", "0"),
        ("--budget", "-1"),
        ("--bootstrap", "-2"),
        ("--manifest", "no.yaml"),
    ):
        assert (
            main(["scaling", "report", str(table), "--out", str(table.parent), option, value]) == 2
        )
        assert capsys.readouterr().err.startswith(f"error: {option}: found")


def test_column_order_units_and_file_kind_do_not_change_a_fit(table, tmp_path, capsys):
    n, d, c, metric = grid()
    other = {"loss": metric, "train_flops": c / 1e15, "millions": n / 1e6, "samples_seen": d}
    moved = write(tmp_path / "moved.csv", **other)
    pyarrow.parquet.write_table(pyarrow.table(other), tmp_path / "moved.parquet")
    for path in (table, moved, tmp_path / "moved.parquet"):
        columns = (
            [] if path == table else ["--params", "millions:1e6", "--compute", "train_flops:1e15"]
        )
        assert main(["scaling", "fit", str(path), *QUICK, *columns]) == 0
    first, second, third = capsys.readouterr().out.split("parametric, ")[1:]
    assert second == third
    numbers = [re.findall(r"(?:alpha|beta|E) +([\d.]+)", said) for said in (first, second)]
    assert numbers[0] == numbers[1]


def test_no_torch_is_loaded(table):
    code = (
        "import sys, supmim_scale.scaling.figures, supmim_scale.scaling.page;"
        "from supmim_scale.cli.main import main;"
        f"main(['scaling', 'fit', {str(table)!r}, '--bootstrap', '2', '--hold-out', '0']);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_error_rate_is_one_less_an_accuracy(tmp_path, capsys):
    points = power_points()
    path = write(
        tmp_path / "acc.csv",
        acc=1 - points.metric,
        train_flops=points.compute,
        set=["a"] * len(points),
    )
    assert main(["scaling", "fit", str(path), "--metric", "1-acc", "--where", "set=a", *QUICK]) == 0
    assert "power_floor, A C^-alpha + E" in capsys.readouterr().out


def make_run(folder, width, steps, *overrides):
    """A run's files as training leaves them, without the training."""
    sizes = [f"model.width={width}", f"optim.steps={steps}", *overrides]
    config = load_config("smoke", sizes)
    folder.mkdir(parents=True)
    facts = {"digest": digest(config), "recipe": resolved(config)}
    (folder / "run.json").write_text(json.dumps(facts))
    n, d = encoder_params(config), 64 * steps
    shape = joint_shape(config, target_features(config))
    start = {
        "kind": "start",
        "steps_done": 0,
        "encoder_params": n,
        "global_batch": 64,
        "train_flops_per_image": step_flops(shape).model,
        "world_size": 1,
    }
    top1 = 0.9 - 30 * n**-0.5 - 20 * d**-0.5
    train = {"kind": "train", "steps_done": steps, "loss": 6.0, "class_loss": 1.7, "mim_loss": 4.3}
    rows = [start, train, {"kind": "eval", "steps_done": steps, "top1": top1, "images": 64}]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_runs_are_read_from_their_folders_arm_by_arm(tmp_path, capsys):
    for width in (64, 128, 256):
        for steps in (100, 200, 400, 800):
            make_run(tmp_path / f"joint_{width}_{steps}", width, steps)
            make_run(tmp_path / f"alone_{width}_{steps}", width, steps, "mim.weight=0")
    assert main(["scaling", "fit", str(tmp_path), *QUICK, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "supervised: parametric" in out
    assert "supervised less supervised + MIM, clean_and_masked: " in out
    (alone, joint) = json.loads((tmp_path / "out/fit.json").read_text())["arms"]
    assert (alone["arm"], alone["metric"], alone["points"]) == ("supervised", "error", 12)
    assert alone["parameters"]["E"] == pytest.approx(0.1, rel=0.05)
    # The joint step costs more, so the same errors stand at more compute.
    assert joint["budgets"][0]["compute"] > 1.3 * alone["budgets"][0]["compute"]


def test_an_unfinished_run_is_named(tmp_path, capsys):
    make_run(tmp_path / "whole", 64, 100)
    make_run(tmp_path / "begun", 64, 200)
    (tmp_path / "begun" / "log.jsonl").write_text("")
    assert main(["scaling", "fit", str(tmp_path)]) == 2
    assert "begun: found no training step in log.jsonl" in capsys.readouterr().err


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two arms on iso-FLOP rungs."""
    folder = tmp_path_factory.mktemp("report")
    n, d, c, metric = iso_flop(sizes=6, noise=0.002)
    both = [np.concatenate([column, column]) for column in (n, d, c)]
    arms = ["supervised"] * len(n) + ["supervised + MIM"] * len(n)
    table = write(
        folder / "study.csv",
        params=both[0],
        samples_seen=both[1],
        train_flops=both[2],
        loss=np.append(metric, 0.98 * metric),
        objective=arms,
        data_wait=np.linspace(0, 0.2, 2 * len(n)),
        mfu=[0.4] * (2 * len(n)),
    )
    study = folder / "study.yaml"
    study.write_text("sizes: [a < b]\n")
    assert (
        main(
            [
                "scaling",
                "report",
                str(table),
                "--bootstrap",
                "4",
                "--manifest",
                str(study),
                "--out",
                str(folder / "out"),
            ]
        )
        == 0
    )
    return folder / "out"


def test_a_report_holds_every_figure_in_three_formats(report):
    names = ["compute", "iso_flop", "optimum", "residuals", "extrapolation", "running"]
    wanted = {f"{arm}_{name}" for arm in ("supervised", "supervised_MIM") for name in names}
    wanted |= {"gap_supervised_MIM"}
    for kind in ("png", "pdf", "svg"):
        assert {path.stem for path in report.glob(f"*.{kind}")} == wanted
    facts = json.loads((report / "fit.json").read_text())
    assert [arm["arm"] for arm in facts["arms"]] == ["supervised", "supervised + MIM"]
    assert len(facts["inputs"]["study.csv"]) == 64


def test_the_page_needs_nothing_beside_it(report):
    page = (report / "report.html").read_text()
    assert page.count("<svg") == 13
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert not re.search(r"url\((?!#)", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    digest_of_input = json.loads((report / "fit.json").read_text())["inputs"]["study.csv"]
    assert digest_of_input in page
    assert "scipy" in page
    assert "sizes: [a &lt; b]" in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to open the page with")
def test_the_page_opens_in_a_browser_and_fits_a_phone(report):
    page = report / "phone.html"
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth"
    page.write_text((report / "report.html").read_text() + probe + "</script>")
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=500,900",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    wide, of = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups()
    assert int(wide) <= int(of)
    assert done.stdout.count("</svg>") == 13


@pytest.mark.parametrize(("low", "high"), [(2.1, 2.9), (1, 1e6), (0.98, 1.02), (3e17, 4e22)])
def test_log_axes_have_a_handful_of_round_ticks(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low <= value <= high for value in found)
    assert tick_text(3e18, "power") == r"$3\times10^{18}$"
    assert tick_text(2e7, "si") == "20 M"
