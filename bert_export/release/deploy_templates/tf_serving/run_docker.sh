#!/bin/sh
# Serves ${name} with TensorFlow Serving in Docker: gRPC on port 8500, REST on 8501.
# Arguments go to the model server. TF_SERVING_IMAGE names another image.
set -eu
here=$$(cd "$$(dirname "$$0")" && pwd)
export_dir=$$(cd "$$here/${to_export_dir}" && pwd)
exec docker run --rm -p 8500:8500 -p 8501:8501 \
  -v "$$export_dir:/models/${name}:ro" \
  -v "$$here:/config:ro" \
  "$${TF_SERVING_IMAGE:-tensorflow/serving:${tf_serving_version}}" \
  --model_config_file=/config/models.config "$$@"
