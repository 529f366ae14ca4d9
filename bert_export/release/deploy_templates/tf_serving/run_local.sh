#!/bin/sh
# Serves ${name} with a tensorflow_model_server (${tf_serving_version}) on the PATH: gRPC on
# port 8500, REST on 8501. Arguments go to the model server.
set -eu
here=$$(cd "$$(dirname "$$0")" && pwd)
export_dir=$$(cd "$$here/${to_export_dir}" && pwd)
exec tensorflow_model_server --port=8500 --rest_api_port=8501 \
  --model_name=${name} --model_base_path="$$export_dir${base_path_inside}" "$$@"
