"""The command line: help, flags, overrides, and how every wrong use is refused."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time

import pytest
from absl import flags

from bert_export import commands
from bert_export.config import Config
from tests.command_line import ROOT, SAMPLE, refused, run

FLAGS = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(commands.__name__)}
COMMANDS = (
    "run",
    "prepare",
    "train",
    "evaluate",
    "export",
    "smoke_test",
    "link",
    "batch_link",
    "retrain",
    "demo",
    "candidates",
    "freeze",
    "convert_corpus",
    "convert_tfjs",
    "train_vocab",
    "transfer_vocab",
    "rollback",
    "versions",
    "verify_version",
)


@pytest.fixture
def workdir(tmp_path):
    return f"--workdir={tmp_path / 'work'}"


def recorded(tmp_path):
    return json.loads((tmp_path / "work" / "config.json").read_text("utf-8"))


@pytest.mark.parametrize(
    "arguments", [(), ("--help",), ("--helpshort",), ("run", "-h")]
)
def test_help_lists_each_command_with_a_line(arguments):
    result = run(*arguments)
    assert result.returncode == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    first = lines.index("Commands:") + 1
    listed = [line.split(maxsplit=1) for line in lines[first : first + len(COMMANDS)]]
    assert tuple(name for name, _ in listed) == COMMANDS
    assert all(len(explanation) > 20 for _, explanation in listed)
    assert lines[first + len(COMMANDS)] == ""


def test_help_is_quick_and_loads_no_tensorflow():
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        result = run("--helpshort", interpreter=("-X", "importtime"))
        seconds.append(time.monotonic() - started)
        assert " tensorflow" not in result.stderr
        assert " absl.flags" in result.stderr
    # A fraction of a second on a machine that has nothing else to do.
    assert statistics.median(seconds) < 2


def test_help_names_every_flag():
    text = run().stdout
    assert {"config", "do_train", "max_bad_records", "json"} <= FLAGS
    for flag in FLAGS:
        assert f"  --{flag}\n" in text


def test_the_page_has_every_command_flag_and_option():
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    first = [row[0].strip("`") for row in rows]
    assert set(COMMANDS) <= set(first)
    overrides = "--config.GROUP.OPTION=VALUE"
    assert {name for name in first if name.startswith("--")} == {
        overrides,
        *(f"--{flag}" for flag in FLAGS),
    }
    documented = {
        row[0].strip("`"): row[1]
        for row in rows
        if row[0].strip("`") not in COMMANDS and not row[0].startswith("`--")
    }
    options = {}
    for name, value in dataclasses.asdict(Config()).items():
        group = value if isinstance(value, dict) else {"": value}
        for key, default in group.items():
            path = f"{name}.{key}" if key else name
            options[path] = "unset" if default is None else f"`{default!r}`"
    assert documented == options


def test_console_script_is_the_same_program():
    script = "from bert_export.__main__ import entry_point; entry_point()"
    for arguments, code in (([], 0), (["nonsense"], 2)):
        result = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        module = run(*arguments)
        assert result.returncode == code
        assert (result.stdout, result.stderr) == (module.stdout, module.stderr)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runn"], "expected one command of run, prepare"),
        (["run", "train"], "run: expected only flags after it, found train"),
        (["convert_tfjs", "model"], "convert_tfjs: expected INPUT OUTPUT after it"),
        (["convert_tfjs", "a", "b"], "convert_tfjs: --input_format is needed"),
        (["convert_tfjs", "a", "b", "--input_format=ccks"], "convert_tfjs: --input_fo"),
        (["convert_corpus"], "convert_corpus: expected OUTPUT_DIR after it, found"),
        ([SAMPLE], "found none"),
        (["run", "--foo=3"], "Unknown command line flag 'foo'"),
        (["run", SAMPLE], "--workdir=DIR is needed"),
        (["link"], "link: give --text="),
        (["smoke_test"], "--workdir=DIR is needed"),
        (["run", "--max_bad_records=-1"], "flag --max_bad_records=-1: -1 is not a non"),
        (["link", "--top=x"], "flag --top=x: invalid literal for int()"),
    ],
)
def test_wrong_flags_are_refused(arguments, expected):
    assert expected in refused(*arguments)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "--config.train.lernin_rate=1",
            "config.train.lernin_rate: unknown key; did you mean learning_rate?",
        ),
        (
            "--noconfig.train.bfloat=1",
            "config.train.bfloat: unknown key; did you mean bfloat16?",
        ),
        ("--config.train=1", "config.train: a group; set one of its options: do_train"),
        ("--config.train.epochs=abc", "flag --config.train.epochs=abc: could not conv"),
        ("--config.train.seed=1.5", "flag --config.train.seed=1.5: invalid literal"),
        (
            "--config.train.max_steps=a",
            "flag --config.train.max_steps=a: invalid liter",
        ),
        ("--config.train.do_train=maybe", "flag --config.train.do_train=maybe: "),
        (
            "--config.features.span_fields=a",
            "config.features.span_fields: expected two",
        ),
        (
            "--config.train.epochs=-1",
            "config.train.epochs: expected more than 0, found",
        ),
        (
            "--config.train.loss=hinge",
            "config.train.loss: expected one of ('listwise',",
        ),
        ("--config.name=", "config.name: expected letters, digits"),
    ],
)
def test_wrong_overrides_are_refused_by_name(override, expected, workdir, tmp_path):
    assert refused("run", SAMPLE, workdir, override).startswith(expected)
    assert not (tmp_path / "work").exists()


def test_override_of_no_config(workdir):
    message = refused("run", workdir, "--config.train.epochs=3")
    assert message.startswith("--config.train.epochs=3: name the config that this ch")


def test_override_before_its_config(workdir):
    message = refused("run", workdir, "--config.train.epochs=3", SAMPLE)
    assert "--config.train.epochs=3" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("no.py", None, "there is no file {path}"),
        ("no.json", None, "cannot read {path}: No such file"),
        ("syntax.py", "x = 1\ndef get_config(:\n", "{path}:2: SyntaxError: "),
        ("fails.py", "\ndef get_config():\n  1/0", "{path}:3: ZeroDivisionError: "),
        ("exits.py", "import nowhere", "{path}:1: ModuleNotFoundError: No module"),
        ("opens.py", "open('/no/file')", "{path}:1: FileNotFoundError: "),
        ("empty.py", "", "{path} has no function get_config()"),
        ("three.py", "def get_config(): return 3", "{path}: get_config() must return"),
        (
            "key.py",
            "from bert_export.config import default_config\n"
            "def get_config():\n"
            "    config = default_config()\n"
            "    config.train.lerning_rate = 1.0\n"
            "    return config\n",
            '{path}:4: AttributeError: \'Key "lerning_rate" does not exist',
        ),
        (
            "type.py",
            "from bert_export.config import default_config\n"
            "def get_config():\n"
            "    config = default_config()\n"
            "    config.train.seed = 'one'\n"
            "    return config\n",
            "{path}:4: TypeError: Could not override field 'seed'",
        ),
        ("broken.json", '{"train": ', "{path} is not JSON: "),
        ("list.json", "[]", "{path} must hold a JSON object"),
        ("key.json", '{"train": {"sed": 1}}', "config.train.sed: unknown key; did you"),
        ("type.json", '{"train": {"seed": "1"}}', "config.train.seed: expected int, "),
    ],
)
@pytest.mark.parametrize("override", [(), ("--config.train.epochs=3",)])
def test_bad_config_files_are_refused(
    name, content, expected, override, workdir, tmp_path
):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    message = refused("run", f"--config={path}", workdir, *override)
    assert message.removeprefix("--config: ").startswith(expected.format(path=path))
    assert len(message) < 400


def test_no_config_and_none_recorded(workdir, tmp_path):
    message = refused("evaluate", workdir)
    assert message == (
        "--config=configs/NAME.py is needed, as there is no "
        f"{tmp_path / 'work' / 'config.json'}"
    )


def test_broken_recorded_config(workdir, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "config.json").write_text('{"train": 3}')
    message = refused("run", workdir, "--nodo_train")
    assert message == "config.train: expected a group of options, found 3"


def test_workdir_that_cannot_be_written(tmp_path):
    # A file in its place: permissions do not stop the superuser.
    (tmp_path / "file").write_text("")
    message = refused("run", SAMPLE, f"--workdir={tmp_path / 'file' / 'work'}")
    assert message.startswith(f"--workdir: cannot write {tmp_path / 'file' / 'work'}")


def test_train_contradicts_nodo_train(workdir):
    message = refused("train", SAMPLE, workdir, "--nodo_train")
    assert message == "train: config.train.do_train is False; add --do_train"


def test_flags_and_overrides_land_in_the_recorded_config(workdir, tmp_path):
    result = run(
        "prepare",
        "--config",
        "configs/sample.py",
        workdir,
        "--nodo_train",
        "--init_checkpoint=some/model.ckpt-1",
        "--use_tpu",
        "--max_bad_records=3",
        "--wordnet_dir=some/wordnet",
        "--export_dir=some/export",
        "--config.corpus.entities=/no/such/entities.jsonl",
        "--config.train.max_steps=7",
        "--config.train.learning_rate=0.125",
        "--config.features.span_fields=('first', 'last')",
        "--config.train.bfloat16",
    )
    # The config is recorded before the corpus is missed.
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "bert-export: config.corpus.entities: there is no file /no/such/entities.jsonl"
    )
    config = recorded(tmp_path)
    assert config["name"] == "sample_linker"
    assert config["train"]["do_train"] is False
    assert config["model"]["init_checkpoint"] == "some/model.ckpt-1"
    assert config["train"]["use_tpu"] is True
    assert config["corpus"]["max_bad_records"] == 3
    assert config["corpus"]["wordnet_dir"] == "some/wordnet"
    assert config["export"]["dir"] == "some/export"
    assert config["train"]["max_steps"] == 7
    assert config["train"]["learning_rate"] == 0.125
    assert config["train"]["bfloat16"] is True
    assert config["features"]["span_fields"] == ["first", "last"]

    # From its own JSON the run is the same, here with one option changed back.
    first = (tmp_path / "work" / "config.json").read_text("utf-8")
    copy = tmp_path / "copy.json"
    copy.write_text(first, "utf-8")
    again = tmp_path / "again"
    run("prepare", f"--config={copy}", f"--workdir={again}", "--config.train.seed=5")
    config["train"]["seed"] = 5
    assert json.loads((again / "config.json").read_text("utf-8")) == config
    # And so it is without --config, from the workdir's own.
    (again / "config.json").write_text(first, "utf-8")
    run("prepare", f"--workdir={again}", "--do_train")
    changed_back = first.replace('"do_train": false', '"do_train": true')
    assert (again / "config.json").read_text("utf-8") == changed_back != first


@pytest.mark.parametrize("arguments", [["smoke_test"], ["link", "--text=[[a]]"]])
def test_artifact_that_is_not_there(arguments, tmp_path):
    message = refused(*arguments, f"--artifact={tmp_path / 'none'}")
    assert message == f"--artifact: there is no directory {tmp_path / 'none'}"
