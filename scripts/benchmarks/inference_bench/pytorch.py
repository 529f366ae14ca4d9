"""A worker with sentence-transformers' CrossEncoder, or with transformers alone."""

from __future__ import annotations

import os
from typing import Any

import torch
from answering import main
from arrays import padded

MAX_LENGTH = 128
# By contender: the directory below the model's, the file in it, and whether its
# precision is to be asked for.
_ONNX = {
    "cross_encoder_onnx": "onnx/model.onnx",
    "cross_encoder_onnx_o3": "onnx/model_O3.onnx",
    "cross_encoder_onnx_int8": "onnx/model_qint8_avx512_vnni.onnx",
}
_OPENVINO = {
    "cross_encoder_openvino": ("openvino/openvino_model.xml", "f32"),
    "cross_encoder_openvino_bfloat16": ("openvino/openvino_model.xml", "bf16"),
    "cross_encoder_openvino_int8": (
        "openvino/openvino_model_qint8_quantized.xml",
        None,
    ),
}


def load(contender: str, directory: str) -> dict[str, Any]:
    """By measure, how a request is prepared and answered."""
    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    if contender == "transformers":
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(f"{directory}/torch")
        module = AutoModelForSequenceClassification.from_pretrained(
            f"{directory}/torch"
        ).eval()

        def answer_text(pairs: list[list[str]]) -> list[float]:
            inputs = tokenizer(
                pairs,
                padding=True,
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
            )
            return _forward(module, inputs)

    else:
        cross_encoder = _cross_encoder(contender, directory, threads)
        module = cross_encoder.transformers_model
        if contender == "cross_encoder_compile":
            # What its documentation says of inputs of many lengths.
            cross_encoder.compile(dynamic=True)
            module = torch.compile(module, dynamic=True)

        def answer_text(pairs: list[list[str]]) -> list[float]:
            return cross_encoder.predict(pairs, show_progress_bar=False)

    return {
        "text": (
            lambda request: list(
                map(list, zip(request["marked"], request["candidates"]))
            ),
            answer_text,
        ),
        "ids": (_tensors, lambda inputs: _forward(module, inputs)),
    }


def _cross_encoder(contender: str, directory: str, threads: int) -> Any:
    from sentence_transformers import CrossEncoder

    backend, options = "torch", {}
    if contender in _ONNX:
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        backend = "onnx"
        options = {
            "file_name": _ONNX[contender],
            "provider": "CPUExecutionProvider",
            "session_options": session,
        }
    elif contender in _OPENVINO:
        file, precision = _OPENVINO[contender]
        backend = "openvino"
        options = {"file_name": file, "ov_config": {"INFERENCE_NUM_THREADS": threads}}
        if precision:
            options["ov_config"]["INFERENCE_PRECISION_HINT"] = precision
    elif contender == "cross_encoder_bfloat16":
        options = {"dtype": torch.bfloat16}
    return CrossEncoder(
        f"{directory}/{backend}",
        backend=backend,
        max_length=MAX_LENGTH,
        model_kwargs=options,
        local_files_only=True,
    )


def _tensors(request: dict[str, Any]) -> dict[str, torch.Tensor]:
    """[pairs, longest] by the names of the model's arguments."""
    ids, mask, segments = map(torch.from_numpy, padded(request))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def _forward(module: Any, inputs: Any) -> list[float]:
    with torch.inference_mode():
        return module(**inputs).logits[:, 0].tolist()


if __name__ == "__main__":
    main(load)
