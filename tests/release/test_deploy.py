"""Set-ups for model servers: valid, portable, and the clients get the right answers."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.config import model_server_config_pb2
from tritonclient.grpc import model_config_pb2

from bert_export.config import FeaturesConfig, Target
from bert_export.errors import StageError, UserError
from bert_export.export import onnx, openvino, requests, saved_model, serving_model
from bert_export.export.linker_graph import TrainedLinker
from bert_export.release import deploy, manifest
from tests import environments, tiny_artifact
from tests.release import model_server

NAME = "tiny.linker"
VERSION = 100
TARGETS = (
    Target("saved_model", "float32"),
    Target("serving_model", "float32"),
    Target("onnx", "float32"),
    Target("onnx", "int8_dynamic"),
)
# Four rows are the last that pay.
BATCHING = deploy.Batching(
    ((1, 0.0042), (2, 0.005), (4, 0.008), (8, 0.016), (16, 0.033)), threads=3
)
MEASURED = {target.name: BATCHING for target in TARGETS}
TEXT = "w1 🦆 [[w2 w3]] w4"
CANDIDATES = ["w5 w6: w7", "w8", "w9 é w10"]


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export directory with one version of several formats."""
    root = tmp_path_factory.mktemp("exports")
    trained = tiny_artifact.trained()
    golden = requests.record_golden(
        trained.estimator, trained.checkpoint, trained.examples, trained.spec
    )
    for target in TARGETS:
        directory = artifact_path(root, target)
        directory.mkdir(parents=True)
        if target.format == "saved_model":
            saved_model.export_saved_model(
                trained.estimator, trained.spec, directory, trained.checkpoint
            )
        else:
            module = {"serving_model": serving_model, "onnx": onnx}[target.format]
            module.write(trained_linker(), directory, target.precision, [])
        saved_model.write_vocab(directory, tiny_artifact.TOKENIZER)
        requests.write_golden(directory, golden)
        describe(directory, target)
    return root


def trained_linker() -> TrainedLinker:
    return TrainedLinker(
        tiny_artifact.trained().checkpoint,
        tiny_artifact.BERT,
        FeaturesConfig(max_seq_length=20),
        tiny_artifact.TOKENIZER,
    )


def describe(directory: Path, target: Target) -> None:
    trained = tiny_artifact.trained()
    described = manifest.build(
        directory,
        name=NAME,
        spec=trained.spec,
        checkpoint_path=trained.checkpoint,
        config={"corpus": {"max_candidates": 6}, "export": {"warmup_requests": 2}},
        metrics={"nil": {"threshold": 0.25}},
        data_fingerprint="0" * 64,
        target=target,
    )
    manifest.write(directory, described)


def artifact_path(root: Path, target: Target) -> Path:
    if target.format == "saved_model":
        return root / str(VERSION)
    return root / target.name / str(VERSION)


def artifacts(root: Path) -> list[Path]:
    return [artifact_path(root, target) for target in TARGETS]


def write(directory: Path, export_dir: Path, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "name": NAME,
        "version": VERSION,
        "artifacts": artifacts(export_dir),
        "export_dir": export_dir,
        "batching": MEASURED,
    }
    deploy.write(directory, **{**arguments, **changes})


@pytest.fixture(scope="module")
def deployed(export_dir: Path) -> Path:
    directory = export_dir / "deploy" / str(VERSION)
    write(directory, export_dir)
    return directory


def files(directory: Path) -> dict[str, bytes | str]:
    """All files by their relative paths; of links, where they lead."""
    return {
        path.relative_to(directory).as_posix(): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


# --- what is written ------------------------------------------------------------------


def test_all_three_set_ups_are_there(deployed: Path) -> None:
    models = ("onnx", "onnx_int8_dynamic")
    features = ("end_ps", "input_ids", "input_mask", "segment_ids", "start_ps")
    assert sorted(files(deployed)) == sorted(
        [
            "kserve/README.md",
            "kserve/tensorflow.yaml",
            "kserve/triton.yaml",
            "tf_serving/README.md",
            "tf_serving/batching_parameters.txt",
            "tf_serving/check_server.py",
            "tf_serving/client_grpc.py",
            "tf_serving/client_rest.py",
            "tf_serving/client_text.py",
            "tf_serving/models.config",
            "tf_serving/models_batched.config",
            "tf_serving/run_docker.sh",
            "tf_serving/run_docker_batched.sh",
            "tf_serving/run_local.sh",
            "triton/README.md",
            *(f"triton/{NAME}_{model}/config.pbtxt" for model in models),
            *(f"triton/{NAME}_{model}/{VERSION}/model.onnx" for model in models),
            *(
                f"triton/{NAME}_{model}/warmup/{feature}"
                for model in models
                for feature in features
            ),
        ]
    )


def test_the_same_input_gives_the_same_bytes(export_dir: Path, deployed: Path) -> None:
    again = export_dir / "again" / str(VERSION)
    write(again, export_dir)
    assert files(again) == files(deployed)


def test_nothing_names_a_place_on_this_machine(deployed: Path) -> None:
    allowed = ("/models/", "/config", "/v1/", "/v2/", "/path/to/", "/bin/sh", "/dev/")
    for name, content in files(deployed).items():
        if "warmup" in name:
            continue
        text = content if isinstance(content, str) else content.decode()
        assert str(Path.cwd()) not in text
        assert str(deployed.parents[1]) not in text
        for path in re.findall(r"(?<![\w.}:/$-])/[a-z][\w.-]*/?", text):
            assert path.startswith(tuple(a[: len(path)] for a in allowed)), (name, path)
        assert "${" not in text.replace("${TF_SERVING_IMAGE:-", ""), name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a b", 'a"b', "a\nb", "-rm", "café", "a/b", "$x"]
)
def test_a_name_unfit_for_paths_is_refused(
    export_dir: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match=r"config\.name"):
        write(tmp_path / "deploy" / "100", export_dir, name=name)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_set_up_is_not_touched(export_dir: Path, deployed: Path) -> None:
    before = files(deployed)
    with pytest.raises(StageError, match="exists"):
        write(deployed, export_dir, artifacts=artifacts(export_dir)[:1])
    assert files(deployed) == before
    assert [path.name for path in deployed.parent.iterdir()] == [str(VERSION)]


def test_nothing_is_left_when_an_artifact_is_broken(
    export_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "onnx" / str(VERSION)
    shutil.copytree(artifact_path(export_dir, Target("onnx", "float32")), broken)
    (broken / "assets.extra" / "golden_requests.json").unlink()
    with pytest.raises(FileNotFoundError, match="golden_requests"):
        write(
            tmp_path / "deploy" / str(VERSION),
            tmp_path,
            artifacts=[*artifacts(export_dir)[:1], broken],
        )
    assert list((tmp_path / "deploy").iterdir()) == []


def test_formats_without_a_server_give_nothing(tmp_path: Path) -> None:
    tflite = tmp_path / "tflite" / str(VERSION)
    tflite.mkdir(parents=True)
    describe(tflite, Target("tflite", "float32"))
    write(tmp_path / "deploy" / str(VERSION), tmp_path, artifacts=[tflite])
    assert not (tmp_path / "deploy").exists()


# --- TF Serving -----------------------------------------------------------------------


@pytest.mark.parametrize("file", ["models.config", "models_batched.config"])
def test_the_model_servers_config_leads_to_the_versions(
    export_dir: Path, deployed: Path, file: str
) -> None:
    text = (deployed / "tf_serving" / file).read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    found = {model.name: model for model in config.model_config_list.config}
    assert found[NAME].model_platform == "tensorflow"
    # run_docker.sh mounts the export directory there.
    base_path = found[NAME].base_path.replace(f"/models/{NAME}", str(export_dir))
    assert (Path(base_path) / str(VERSION) / "saved_model.pb").is_file()
    if file == "models_batched.config":
        assert found[f"{NAME}_batched"].base_path == f"/models/{NAME}_batched"
    else:
        assert len(found) == 1


def test_a_saved_model_alone_is_served_without_text_clients(
    export_dir: Path, tmp_path: Path
) -> None:
    saved = artifact_path(export_dir, Target("saved_model", "float32"))
    place = tmp_path / str(VERSION)
    shutil.copytree(saved, place)
    directory = tmp_path / "deploy" / str(VERSION)
    write(directory, tmp_path, artifacts=[place])
    written = files(directory)
    assert not [name for name in written if "client" in name or "triton" in name]
    assert b"export the format `serving_model`" in written["tf_serving/README.md"]
    config = text_format.Parse(
        (directory / "tf_serving" / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    )
    # The versions lie in the export directory itself.
    assert config.model_config_list.config[0].base_path == f"/models/{NAME}"


def batching_parameters() -> Any:
    """A message class as TF Serving's `BatchingParameters`.

    No package ships it. Written down from
    tensorflow_serving/servables/tensorflow/session_bundle_config.proto.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="batching_parameters.proto",
        package="tensorflow.serving.written_down",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    message = file.message_type.add(name="BatchingParameters")
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, name in enumerate(
        (
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
            "num_batch_threads",
        ),
        1,
    ):
        message.field.add(
            name=name,
            number=number,
            label=kinds.LABEL_OPTIONAL,
            type=kinds.TYPE_MESSAGE,
            type_name=".google.protobuf.Int64Value",
        )
    message.field.add(
        name="pad_variable_length_inputs",
        number=7,
        label=kinds.LABEL_OPTIONAL,
        type=kinds.TYPE_BOOL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{file.package}.BatchingParameters")
    )


def test_batching_parameters_are_those_measured(deployed: Path) -> None:
    text = (deployed / "tf_serving" / "batching_parameters.txt").read_text()
    parameters = text_format.Parse(text, batching_parameters()())
    # Four rows are best, and six candidates have to fit.
    assert parameters.max_batch_size.value == 6
    assert parameters.batch_timeout_micros.value == 4200
    assert parameters.num_batch_threads.value == 3
    assert parameters.max_enqueued_batches.value == 3
    assert not parameters.pad_variable_length_inputs
    assert re.search(r"^# +16 +33\.00 +484\.8$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("measured", "best", "timeout"),
    [
        (((1, 0.004),), 1, 4000),
        (((1, 0.004), (2, 0.004), (4, 0.0081)), 2, 4000),
        # One step that does not pay may be noise; the next is looked at.
        (((1, 0.004), (2, 0.008), (4, 0.0072), (8, 0.0144)), 4, 4000),
        (((1, 0.2), (2, 0.3)), 2, 10_000),
        (((1, 0.00001), (2, 0.00001)), 2, 100),
    ],
)
def test_batches_grow_as_long_as_it_pays(
    measured: tuple[tuple[int, float], ...], best: int, timeout: int
) -> None:
    batching = deploy.Batching(measured, threads=1)
    assert batching.best_batch_size == best
    assert batching.timeout_micros == timeout


@pytest.mark.parametrize("target", TARGETS[1:3], ids=lambda target: target.name)
def test_batches_are_measured_on_the_artifact(export_dir: Path, target: Target) -> None:
    batching = deploy.measure_batching(artifact_path(export_dir, target), seconds=0.4)
    rows = [rows for rows, _ in batching.measured]
    assert rows == [2**power for power in range(len(rows))]
    assert all(seconds > 0 for _, seconds in batching.measured)
    assert batching.threads >= 1


def test_an_artifact_that_fails_cannot_be_measured(
    export_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(artifact_path(export_dir, Target("onnx", "float32")), broken)
    (broken / "model.onnx").write_bytes(b"no model")
    with pytest.raises(StageError, match="cannot measure batches"):
        deploy.measure_batching(broken)


def test_the_model_servers_own_padding_would_change_answers(export_dir: Path) -> None:
    # It repeats each tensor's first value, here the first token's id and mask.
    path = artifact_path(export_dir, Target("serving_model", "float32"))
    saved = tf.saved_model.load(str(path))
    spec = tiny_artifact.trained().spec
    batch = requests.dense_batch(tiny_artifact.trained().examples[:1], spec)

    def score(pad_value: Any) -> float:
        padded = {
            name: np.concatenate(
                [value, np.full([1, 2], pad_value(value), np.int64)], axis=1
            )
            if name in spec.sequence_names
            else value
            for name, value in batch.items()
        }
        assert padded[spec.input_ids].shape[1] <= spec.max_seq_length
        tensors = {name: tf.constant(value) for name, value in padded.items()}
        return float(saved.signatures["tensors"](**tensors)["score"][0])

    tensors = {name: tf.constant(value) for name, value in batch.items()}
    unpadded = float(saved.signatures["tensors"](**tensors)["score"][0])
    assert score(lambda value: 0) == pytest.approx(unpadded, abs=1e-6)
    assert abs(score(lambda value: value[0, 0]) - unpadded) > 1e-3


def test_the_tokenizers_operations_are_in_tf_serving(export_dir: Path) -> None:
    path = artifact_path(export_dir, Target("serving_model", "float32"))
    proto = saved_model_pb2.SavedModel.FromString(
        (path / "saved_model.pb").read_bytes()
    )
    graph = proto.meta_graphs[0].graph_def
    used = {node.op for node in graph.node}
    used |= {
        node.op for function in graph.library.function for node in function.node_def
    }
    text_ops = {op for op in used if op.startswith("TFText>") or op.startswith("Fast")}
    # All that serves text; in tensorflow_text 2.12.1, which TF Serving 2.12 and the
    # releases after it link. Later ones are not in all of them.
    assert text_ops == {
        "FastBertNormalize",
        "FastWordpieceTokenizeWithOffsets",
    }


@pytest.fixture
def recorder(tmp_path: Path) -> dict[str, str]:
    """An environment in which docker and the model server write their arguments."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for command in ("docker", "tensorflow_model_server"):
        path = directory / command
        path.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}


def run_script(script: Path, *arguments: str, env: dict[str, str]) -> list[str]:
    result = subprocess.run(
        ["sh", str(script), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=env,
        cwd="/",
    )
    return result.stdout.splitlines()


def test_docker_gets_the_export_directory(
    export_dir: Path, deployed: Path, recorder: dict[str, str]
) -> None:
    here = deployed / "tf_serving"
    words = run_script(here / "run_docker.sh", "--enable_batching", env=recorder)
    assert f"{export_dir}:/models/{NAME}:ro" in words
    assert f"{here}:/config:ro" in words
    image = f"tensorflow/serving:{deploy.TF_SERVING_VERSION}"
    rest = words[words.index(image) + 1 :]
    assert rest == ["--model_config_file=/config/models.config", "--enable_batching"]


def test_a_local_server_gets_the_versions_directory(
    export_dir: Path, deployed: Path, recorder: dict[str, str]
) -> None:
    words = run_script(deployed / "tf_serving" / "run_local.sh", env=recorder)
    assert f"--model_name={NAME}" in words
    assert f"--model_base_path={export_dir}/serving_model" in words


def test_batched_requests_get_a_copy_of_the_version(
    export_dir: Path, deployed: Path, recorder: dict[str, str], tmp_path: Path
) -> None:
    before = files(export_dir / "serving_model")
    script = deployed / "tf_serving" / "run_docker_batched.sh"
    batched = tmp_path / "with space" / "batched"
    for _ in range(2):
        words = run_script(script, str(batched), env=recorder)
        assert f"{batched}:/models/{NAME}_batched:ro" in words
        assert "--enable_per_model_batching_parameters" in words
        assert [path.name for path in batched.iterdir()] == [str(VERSION)]
        parameters = (batched / str(VERSION) / "batching_params.pbtxt").read_text()
        assert text_format.Parse(parameters, batching_parameters()())
        assert (batched / str(VERSION) / "saved_model.pb").is_file()
    assert files(export_dir / "serving_model") == before
    with pytest.raises(subprocess.CalledProcessError) as error:
        run_script(script, env=recorder)
    assert error.value.returncode == 2


# --- the clients ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(export_dir: Path) -> model_server.Model:
    path = artifact_path(export_dir, Target("serving_model", "float32"))
    return model_server.Model(NAME, path)


@pytest.fixture(scope="module")
def grpc_host(served: model_server.Model) -> Iterator[str]:
    with model_server.grpc_server(served) as host:
        yield host


@pytest.fixture(scope="module")
def rest_host(served: model_server.Model) -> Iterator[str]:
    with model_server.rest_server(served) as host:
        yield host


def run_client(
    deployed: Path, client: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(deployed / "tf_serving" / client), *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"},
        timeout=120,
        check=False,
    )


def text_arguments(*more: str) -> list[str]:
    return [f"--text={TEXT}", *(f"--candidate={c}" for c in CANDIDATES), *more]


def expected_rows(served: model_server.Model) -> list[list[Any]]:
    """The ranking as the model itself computes it."""
    text = TEXT.replace("[[", "").replace("]]", "")
    start = text.index("w2")
    outputs = served.predict(
        NAME,
        "link",
        {
            "text": np.array(text.encode(), object),
            "mention_start": np.int64(start),
            "mention_end": np.int64(start + len("w2 w3")),
            "candidates": np.array([c.encode() for c in CANDIDATES], object),
        },
    )
    columns = (outputs["probabilities"], outputs["link_probability"], outputs["score"])
    rows = list(zip(*(column.tolist() for column in columns), CANDIDATES))
    return [list(row) for row in sorted(rows, key=lambda row: -row[2])]


def assert_ranking(output: str, expected: list[list[Any]]) -> None:
    lines = output.splitlines()
    assert lines[0].split() == ["rank", "probability", "link", "score", "candidate"]
    for rank, (line, row) in enumerate(zip(lines[1:], expected), 1):
        found = line.split(maxsplit=4)
        assert int(found[0]) == rank
        assert [float(value) for value in found[1:4]] == pytest.approx(
            row[:3], abs=2e-5
        )
        assert found[4] == row[3]
    below = max(row[1] for row in expected) < 0.25
    assert len(lines) == 1 + len(expected) + below
    assert ("NIL" in lines[-1]) == below


def test_the_grpc_client_gets_the_models_numbers(
    deployed: Path, served: model_server.Model, grpc_host: str
) -> None:
    arguments = text_arguments(f"--host={grpc_host}")
    result = run_client(deployed, "client_grpc.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert_ranking(result.stdout, expected_rows(served))


@pytest.mark.parametrize(
    ("more", "code", "error"),
    [
        ("--signature=text", 0, ""),
        ("--model=other", 1, "NOT_FOUND: Servable not found"),
        ("--host=127.0.0.1:9", 1, "UNAVAILABLE: "),
    ],
)
def test_the_grpc_client_in_this_process(
    deployed: Path,
    served: model_server.Model,
    grpc_host: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: str,
    code: int,
    error: str,
) -> None:
    # A process of its own would import TensorFlow again, for seconds.
    script = deployed / "tf_serving" / "client_grpc.py"
    arguments = text_arguments(f"--host={grpc_host}", more)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.delitem(sys.modules, "client_text", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == code
    output = capsys.readouterr()
    if code == 0:
        assert_ranking(output.out, expected_rows(served))
    else:
        assert output.out == ""
    assert output.err.startswith(error)


@pytest.mark.parametrize("signature", ["link", "text"])
def test_the_rest_client_gets_the_models_numbers(
    deployed: Path, served: model_server.Model, rest_host: str, signature: str
) -> None:
    arguments = text_arguments(f"--host={rest_host}", f"--signature={signature}")
    result = run_client(deployed, "client_rest.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert_ranking(result.stdout, expected_rows(served))


def test_the_rest_client_says_why_a_request_was_refused(
    deployed: Path, rest_host: str
) -> None:
    arguments = text_arguments(f"--host={rest_host}", "--model=other")
    result = run_client(deployed, "client_rest.py", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("refused: 404: ")
    long = " ".join(f"w{n}" for n in range(30))
    result = run_client(
        deployed,
        "client_rest.py",
        f"--host={rest_host}",
        f"--text=[[{long}]]",
        "--candidate=w1",
    )
    assert result.returncode == 1
    assert "more word pieces" in result.stderr


def test_a_client_without_a_server_ends_with_1(deployed: Path) -> None:
    # Nothing listens on port 9 of this machine.
    arguments = text_arguments("--host=127.0.0.1:9", "--timeout=5")
    result = run_client(deployed, "client_rest.py", *arguments)
    assert result.returncode == 1
    assert "127.0.0.1:9 not reached" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "text",
    ["no mention", "[[ ]]", "[[a]] [[b]]", "[[a", "a]]", "]]a[[", "[[a]]]]", "[[[[a]]"],
)
def test_a_text_without_one_mention_is_refused(deployed: Path, text: str) -> None:
    result = run_client(
        deployed, "client_rest.py", f"--text={text}", "--candidate=c", "--host=x"
    )
    assert result.returncode == 2
    assert "expected one mention in double brackets" in result.stderr


def test_the_golden_requests_are_answered_alike(
    deployed: Path, rest_host: str, tmp_path: Path
) -> None:
    result = run_client(deployed, "check_server.py", f"--host={rest_host}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("the same answers: 32 requests")
    path = deployed.parents[1] / "serving_model" / str(VERSION)
    golden = json.loads((path / "assets.extra/golden_requests.json").read_text())
    golden["requests"][3]["probabilities"][0] += 0.01
    changed = tmp_path / "golden.json"
    changed.write_text(json.dumps(golden))
    result = run_client(
        deployed, "check_server.py", f"--host={rest_host}", f"--golden={changed}"
    )
    assert result.returncode == 1
    assert "OTHER ANSWERS" in result.stdout
    assert "0.01" in result.stdout
    result = run_client(deployed, "check_server.py", f"--golden={tmp_path}/none")
    assert result.returncode == 2


# --- Triton ---------------------------------------------------------------------------


def triton_config(deployed: Path, target: Target) -> tuple[Path, Any]:
    """A model's directory and its parsed configuration."""
    directory = deployed / "triton" / f"{NAME}_{target.name}"
    text = (directory / "config.pbtxt").read_text()
    return directory, text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("target", TARGETS[2:], ids=lambda target: target.name)
def test_triton_feeds_the_model_what_it_takes(deployed: Path, target: Target) -> None:
    import onnxruntime

    directory, config = triton_config(deployed, target)
    assert config.name == directory.name
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 6
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
    model = directory / str(VERSION) / config.default_model_filename
    session = onnxruntime.InferenceSession(str(model))
    types = {"TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}

    def model_shape(tensor: Any) -> list[int]:
        """What Triton hands over: the batch, then `reshape` or `dims`."""
        inner = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        return [-1, *inner]

    for declared, real in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert {tensor.name for tensor in declared} == {tensor.name for tensor in real}
        by_name = {tensor.name: tensor for tensor in real}
        for tensor in declared:
            found = by_name[tensor.name]
            shape = [d if isinstance(d, int) else -1 for d in found.shape]
            assert model_shape(tensor) == shape
            values = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type
            name = values.values_by_number[tensor.data_type].name
            assert types[name] == found.type
    # The warm-up's request, as Triton builds it, gets the first golden answer.
    (warmup,) = config.model_warmup
    shapes = {tensor.name: model_shape(tensor)[1:] for tensor in config.input}
    feeds = {}
    for name, value in warmup.inputs.items():
        data = np.fromfile(directory / "warmup" / value.input_data_file, "<i8")
        assert data.size == np.prod(value.dims)
        feeds[name] = data.reshape([warmup.batch_size, *shapes[name]])
    (probabilities,) = session.run(["probabilities"], feeds)
    path = deployed.parents[1] / target.name / str(VERSION)
    golden = json.loads((path / "assets.extra/golden_requests.json").read_text())
    tolerance = 1e-4 if target.precision == "float32" else 0.35
    expected = [golden["requests"][0]["probabilities"]]
    np.testing.assert_allclose(probabilities, expected, atol=tolerance)


def test_triton_gets_openvino_models_unbatched(
    export_dir: Path, tmp_path: Path
) -> None:
    import openvino as ov

    target = Target("openvino", "float32")
    place = tmp_path / target.name / str(VERSION)
    source = artifact_path(export_dir, Target("onnx", "float32"))
    shutil.copytree(source / "assets.extra", place / "assets.extra")
    openvino.write(trained_linker(), place, target.precision, [])
    describe(place, target)
    directory = tmp_path / "deploy" / str(VERSION)
    write(directory, tmp_path, artifacts=[place])
    model, config = triton_config(directory, target)
    assert config.backend == "openvino"
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    # Read through the links, both files.
    read = ov.Core().read_model(model / str(VERSION) / config.default_model_filename)
    for declared, real in ((config.input, read.inputs), (config.output, read.outputs)):
        shapes = {
            tensor.get_any_name(): [
                dim.get_length() if dim.is_static else -1
                for dim in tensor.partial_shape
            ]
            for tensor in real
        }
        assert {tensor.name: list(tensor.dims) for tensor in declared} == shapes
    warmup = config.model_warmup[0].inputs
    assert list(warmup["start_ps"].dims) == [1]
    assert warmup["input_ids"].dims[0] == 1
    assert not (directory / "tf_serving").exists()
    assert not (directory / "kserve" / "tensorflow.yaml").exists()


def test_a_copy_of_the_model_repository_stands_on_its_own(
    deployed: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "repository"
    subprocess.run(["cp", "-rL", str(deployed / "triton"), str(copy)], check=True)
    models = sorted(copy.rglob("model.onnx"))
    assert len(models) == 2
    for model in models:
        assert not model.is_symlink()
        target = model.parent.parent.name.removeprefix(f"{NAME}_")
        source = deployed.parents[1] / target / str(VERSION) / "model.onnx"
        assert model.read_bytes() == source.read_bytes()


# --- KServe ---------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["tensorflow.yaml", "triton.yaml"])
def test_kserve_gets_a_name_and_a_marked_place(deployed: Path, file: str) -> None:
    service = yaml.safe_load((deployed / "kserve" / file).read_text())
    assert service["kind"] == "InferenceService"
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?", service["metadata"]["name"])
    model = service["spec"]["predictor"]["model"]
    assert "REPLACE-WITH-YOUR-BUCKET" in model["storageUri"]
    # A number would be refused.
    assert isinstance(model["runtimeVersion"], str)
    assert isinstance(model["modelFormat"]["version"], str)


@pytest.mark.parametrize(
    ("name", "service"),
    [
        ("linker", "linker"),
        ("Tiny.Linker_2", "tiny-linker-2"),
        ("9lives", "model-9lives"),
        ("___", "model"),
        ("a" * 39 + "-b", "a" * 39),
    ],
)
def test_any_model_name_gives_a_name_for_kubernetes(name: str, service: str) -> None:
    assert deploy._service_name(name) == service


CHECK_KSERVE = """
import re
import sys

import kserve.models
import kubernetes.client
import yaml


def check(value, kind, where):
    # kind: how KServe's and Kubernetes' generated models name a field's type.
    mapping = re.fullmatch(r"[Dd]ict[\\[(]str, (.+)[\\])]", kind)
    if kind.startswith("list["):
        assert isinstance(value, list), where
        for item in value:
            check(item, kind[5:-1], where)
    elif mapping:
        assert isinstance(value, dict), where
        for key, item in value.items():
            check(item, mapping[1], where + "." + key)
    elif kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, where
    else:
        cls = getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind)
        names = {json_name: name for name, json_name in cls.attribute_map.items()}
        assert set(value) <= set(names), (where, set(value) - set(names))
        for key, item in value.items():
            check(item, cls.openapi_types[names[key]], where + "." + key)
        # Its constructor refuses a missing field.
        cls(**{names[key]: item for key, item in value.items()})


for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        check(yaml.safe_load(file), "V1beta1InferenceService", path)
    print("valid:", path)
"""


@pytest.mark.slow
def test_kserves_own_models_take_the_services(deployed: Path, tmp_path: Path) -> None:
    # Its protobuf is too new for TensorFlow 2.15, hence an environment of its own.
    python = environments.interpreter("kserve==0.21.0")
    services = sorted((deployed / "kserve").glob("*.yaml"))
    assert len(services) == 2
    script = tmp_path / "check.py"
    script.write_text(CHECK_KSERVE)

    def check(*paths: Path) -> subprocess.CompletedProcess[str]:
        return environments.run(python, script, *paths)

    result = check(*services)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("valid:") == 2
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(services[0].read_text().replace("storageUri", "storageURI"))
    assert "storageURI" in check(wrong).stderr
